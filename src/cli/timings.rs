//! `--timings`: where the time of a command went.

use super::Parsed;
use crate::error::{Context as _, Error, Result};
use crate::sys::timing::{self, Mark};
use std::fmt::Write as _;
use std::time::Duration;

/// The step that ends the last one.
const END: &str = "end";

/// A step with its length.
struct Step {
    mark: Mark,
    length: Duration,
    is_own: bool,
}

impl Parsed {
    /// Begins to take times, when they are asked for.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn take_times(&self) -> Result<()> {
        if !self.globals.is_on("timings") {
            return Ok(());
        }
        timing::switch_on().doing("take times")?;
        timing::step("prepare");
        Ok(())
    }

    /// Shows the times that were taken.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn show_times(&self) -> Result<()> {
        if !timing::is_on() {
            return Ok(());
        }
        timing::step(END);
        let steps = steps(&timing::marks(), nix::unistd::getpid().as_raw());
        eprint!("{}", table(&steps));
        match self.globals.value("timings") {
            Some(file) if !file.is_empty() && !super::table::is_boolean(file) => {
                std::fs::write(file, trace(&steps, self.command.name)).map_err(|error| {
                    Error::system("write the timings", crate::sys::io_errno(&error)).on(file.to_owned())
                })
            }
            _ => Ok(()),
        }
    }
}

/// Every step until the next one of its process. A child's last step ends with exec or exit, which
/// this process sees a moment later: by its own next step.
fn steps(marks: &[Mark], own: i32) -> Vec<Step> {
    let timed = |(index, mark): (usize, &Mark)| {
        let mut later = marks[index + 1..].iter();
        let next = later.clone().find(|next| next.process == mark.process);
        let end = next.or_else(|| later.find(|next| next.process == own)).map_or(mark.at, |next| next.at);
        Step { mark: *mark, length: end.saturating_sub(mark.at), is_own: mark.process == own }
    };
    let all = marks.iter().enumerate().map(timed);
    all.filter(|step| !step.is_own || step.mark.name != END).collect()
}

fn micros(time: Duration) -> u128 {
    time.as_nanos().div_ceil(1000)
}

/// For people: when, how long, who, what.
fn table(steps: &[Step]) -> String {
    let Some(begin) = steps.first().map(|step| step.mark.at) else { return String::new() };
    let mut text = String::from("   at µs    for µs  step\n");
    let own = steps.iter().filter(|step| step.is_own);
    let total: Duration = own.map(|step| step.length).sum();
    for step in steps {
        let who = if step.is_own { "" } else { "  │ " };
        let at = micros(step.mark.at.saturating_sub(begin));
        let _ = writeln!(text, "{at:>8}  {:>8}  {who}{}", micros(step.length), step.mark.name);
    }
    let _ = writeln!(
        text,
        "          {:>8}  in all; steps behind │ are of the container's process",
        micros(total)
    );
    text
}

/// For Perfetto and chrome://tracing: the Trace Event Format, complete events in µs.
fn trace(steps: &[Step], command: &str) -> String {
    let begin = steps.first().map_or(Duration::ZERO, |step| step.mark.at);
    let row = |step: &Step| if step.is_own { 1 } else { 2 };
    let exact = |time: Duration| time.as_secs_f64() * 1e6;
    let mut events: Vec<serde_json::Value> = steps
        .iter()
        .map(|step| {
            serde_json::json!({
                "name": step.mark.name, "cat": command, "ph": "X", "pid": 1, "tid": row(step),
                "ts": exact(step.mark.at.saturating_sub(begin)), "dur": exact(step.length),
                "args": { "pid": step.mark.process },
            })
        })
        .collect();
    for (thread, name) in [(1, format!("dhow {command}")), (2, "the container's process".to_owned())] {
        let args = serde_json::json!({ "name": name });
        events.push(
            serde_json::json!({"name": "thread_name", "ph": "M", "pid": 1, "tid": thread, "args": args}),
        );
    }
    serde_json::json!({ "traceEvents": events, "displayTimeUnit": "ms" }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_ends_with_the_next_of_its_process() {
        let mark = |at, process, name| Mark { at: Duration::from_micros(at), process, name };
        let marks =
            [mark(10, 7, "a"), mark(20, 1, "x"), mark(30, 7, "b"), mark(45, 1, "y"), mark(50, 7, END)];
        let steps = steps(&marks, 7);
        let lengths: Vec<_> = steps.iter().map(|step| (step.mark.name, step.length.as_micros())).collect();
        assert_eq!(lengths, [("a", 20), ("x", 25), ("b", 20), ("y", 5)]);
        let text = table(&steps);
        assert!(text.contains("      10        25    │ x\n"), "{text}");
        assert!(text.contains("        40  in all"), "{text}");
    }
}
