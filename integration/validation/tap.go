// Package tap writes the Test Anything Protocol: as much of it as the validation programs of
// runtime-tools call, for Debian does not have the package that they were written for.
package tap

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// T is one stream of results.
type T struct {
	next   int
	Writer io.Writer
}

// New writes to standard output.
func New() *T { return &T{next: 1, Writer: os.Stdout} }

// Header announces the version and, when it is known, the number of tests.
func (t *T) Header(count int) {
	fmt.Fprintln(t.Writer, "TAP version 13")
	if count > 0 {
		fmt.Fprintf(t.Writer, "1..%d\n", count)
	}
}

func (t *T) line(result, description string) {
	fmt.Fprintf(t.Writer, "%s %d - %s\n", result, t.next, strings.ReplaceAll(description, "\n", " "))
	t.next++
}

// Ok reports one test.
func (t *T) Ok(passed bool, description string) {
	if passed {
		t.line("ok", description)
	} else {
		t.line("not ok", description)
	}
}

// Pass reports one that passed.
func (t *T) Pass(description string) { t.Ok(true, description) }

// Fail reports one that failed.
func (t *T) Fail(description string) { t.Ok(false, description) }

// Skip reports tests that were not run.
func (t *T) Skip(count int, description string) {
	for range count {
		t.line("ok", "# SKIP "+description)
	}
}

// Todo marks what is reported next as known to fail.
func (t *T) Todo() *T { return &T{next: t.next, Writer: todo{t.Writer}} }

type todo struct{ to io.Writer }

func (w todo) Write(text []byte) (int, error) {
	_, err := io.WriteString(w.to, strings.Replace(string(text), "\n", " # TODO\n", 1))
	return len(text), err
}

// AutoPlan announces the number of tests at the end.
func (t *T) AutoPlan() { fmt.Fprintf(t.Writer, "1..%d\n", t.next-1) }

// Diagnostic is for people.
func (t *T) Diagnostic(message string) {
	fmt.Fprintln(t.Writer, "# "+strings.ReplaceAll(message, "\n", "\n# "))
}

// Diagnosticf is for people.
func (t *T) Diagnosticf(format string, values ...interface{}) {
	t.Diagnostic(fmt.Sprintf(format, values...))
}

// YAML tells more of the last test.
func (t *T) YAML(message interface{}) error {
	text, err := json.MarshalIndent(message, "  ", "  ")
	if err != nil {
		return err
	}
	fmt.Fprintf(t.Writer, "  ---\n  %s\n  ...\n", text)
	return nil
}
