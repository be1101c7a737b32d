//! The command line: what may be given, and which function of `runtime` it means. Each command's
//! file has its flags and nothing else.

mod bundle;
mod check;
mod checkpoint;
mod commit;
mod completion;
mod cp;
mod create;
mod delete;
mod diff;
mod doctor;
mod events;
mod exec;
mod features;
mod from_image;
mod help;
mod image;
mod inspect;
mod kill;
mod list;
mod logs;
#[cfg(test)]
mod man;
mod monitor;
mod nested;
mod parse;
mod pause;
mod progress;
mod ps;
mod registry;
mod run;
mod seccomp;
mod spec;
mod start;
mod state;
mod stats;
mod stop;
mod table;
mod timings;
mod update;
mod volume;

pub use parse::Parsed;
pub use table::{Args, Command};

use crate::cgroups::Driver;
use crate::error::{Class, Context as _, Error, Result};
use crate::log::{self, Format, Level, Sink};
use crate::runtime::Context;
use crate::sys::selfexe;
use clap::error::ErrorKind;
use help::Face;
use nix::unistd::geteuid;
use std::path::PathBuf;
use table::{Flag, option, switch};

/// Options of every command.
const GLOBALS: &[Flag] = &[
    option("root", "DIR", "where the state of containers is kept [default: /run/dhow]"),
    option("log", "FILE", "where errors and warnings are written [default: stderr]"),
    option("log-format", "FORMAT", "the form of a line in the log: text or json [default: text]"),
    option(
        "log-level",
        "LEVEL",
        "the least that is logged: error, warning, info or debug [default: warning]",
    ),
    switch("debug", "log debug lines too"),
    switch("systemd-cgroup", "let systemd make the cgroups"),
    option(
        "cgroup-manager",
        "MANAGER",
        "who makes cgroups: cgroupfs, systemd or disabled [default: cgroupfs]",
    ),
    option("rootless", "BOOL", "whether errors of cgroups are ignored: true, false or auto [default: auto]"),
    option("timings", "FILE", "show where the time went, and write it as a trace that Perfetto opens")
        .optional(),
    option("criu", "PATH", "taken for compatibility").hidden(),
];

/// Every command.
const COMMANDS: &[Command] = &[
    create::COMMAND,
    start::COMMAND,
    state::COMMAND,
    kill::COMMAND,
    delete::COMMAND,
    run::COMMAND,
    stop::STOP,
    stop::RESTART,
    stop::WAIT,
    inspect::COMMAND,
    doctor::COMMAND,
    check::COMMAND,
    logs::COMMAND,
    exec::COMMAND,
    pause::PAUSE,
    pause::RESUME,
    ps::COMMAND,
    list::COMMAND,
    update::COMMAND,
    events::COMMAND,
    stats::COMMAND,
    spec::COMMAND,
    features::COMMAND,
    seccomp::COMMAND,
    image::COMMAND,
    volume::COMMAND,
    bundle::COMMAND,
    diff::COMMAND,
    commit::COMMAND,
    completion::COMMAND,
    cp::COMMAND,
    monitor::EXITED,
    monitor::REVIVE,
    checkpoint::CHECKPOINT,
    checkpoint::RESTORE,
];

/// What `--version` prints. go-runc looks for a first line that begins with `runc version`, docker
/// for `NAME version X`, podman for the first line and `spec:`; each takes this form.
pub const VERSION: &str =
    concat!("version ", env!("CARGO_PKG_VERSION"), "\ncommit: ", env!("DHOW_COMMIT"), "\nspec: 1.3.0");

const FACE: Face = Face {
    name: "dhow",
    about: "A low-level OCI runtime: small, fast, and safe",
    version: VERSION,
    globals: GLOBALS,
    commands: COMMANDS,
};

/// What a call comes to when it is not one command's to carry out.
#[derive(Debug)]
pub enum Call {
    /// A command.
    Command(Parsed),
    /// Help or the version, for standard output.
    Text(String),
    /// A call that cannot be understood, with the words for standard error.
    Wrong(String),
}

/// Understands argv, without the program's name.
pub fn understand(argv: &[String]) -> Call {
    if matches!(argv, [only] if matches!(only.as_str(), "--version" | "-v" | "-version")) {
        return Call::Text(format!("dhow {VERSION}\n"));
    }
    if let Some(parsed) = parse::parse(argv, GLOBALS, COMMANDS) {
        return Call::Command(parsed);
    }
    if let Some(text) = help::topic(argv) {
        return Call::Text(text);
    }
    match help::parse(argv, &FACE) {
        Ok(parsed) => Call::Command(parsed),
        Err(error) => match told(&error, &FACE) {
            Told::Help(text) => Call::Text(text),
            Told::Usage(text) => Call::Wrong(text),
            Told::Mistake(words) => Call::Wrong(format!("dhow: {words}\n")),
        },
    }
}

/// What clap says in place of a command.
enum Told {
    /// What was asked for.
    Help(String),
    /// The help of a call without a command: what there is.
    Usage(String),
    /// One line.
    Mistake(String),
}

fn told(error: &clap::Error, face: &Face) -> Told {
    match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Told::Usage(error.to_string()),
        ErrorKind::MissingSubcommand => Told::Usage(help::build(face).render_help().to_string()),
        _ if error.use_stderr() => Told::Mistake(one_line(&error.to_string())),
        _ => Told::Help(error.to_string()),
    }
}

/// clap's error as one line, as all of dhow's errors are: what is wrong, and where help is.
fn one_line(text: &str) -> String {
    let words = |paragraph: &str| paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut paragraphs = text.split("\n\n").map(words).filter(|paragraph| !paragraph.is_empty());
    let wrong = paragraphs.next().unwrap_or_default();
    // podman looks for these words to find out what restore can do.
    let wrong = match wrong.strip_prefix("error: a value is required for '") {
        Some(rest) => {
            let flag = rest.split([' ', '\'']).next().unwrap_or_default();
            format!("flag needs an argument: {}", flag.trim_start_matches('-'))
        }
        None => wrong,
    };
    let hint = paragraphs.find(|paragraph| paragraph.starts_with("tip: ")).map(|tip| format!(" ({tip})"));
    let hint = hint.unwrap_or_else(|| " (try --help)".to_owned());
    format!("{}{hint}", wrong.strip_prefix("error: ").unwrap_or(&wrong))
}

impl Parsed {
    /// Sets up the log, as the global options say.
    ///
    /// # Errors
    /// [`Class::Usage`] for an unknown value; when the file cannot be opened.
    pub fn set_up_log(&self) -> Result<()> {
        let globals = &self.globals;
        let level = match globals.value("log-level") {
            Some(text) => Level::parse(text).ok_or_else(|| unknown("--log-level", text))?,
            None => Level::Warning,
        };
        let level = if globals.is_on("debug") { Level::Debug } else { level };
        let format = match globals.value("log-format") {
            None | Some("") => None,
            Some("text") => Some(Format::Text),
            Some("json") => Some(Format::Json),
            Some(text) => return Err(unknown("--log-format", text)),
        };
        let file = match globals.value("log") {
            None | Some("" | "/dev/stderr") => None,
            Some(path) => {
                let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
                Some(opened.map_err(|error| {
                    Error::system("open the log", crate::sys::io_errno(&error)).on(path.to_owned())
                })?)
            }
        };
        // Whoever asks how it is done also wants to know when.
        let format = format.or((level == Level::Debug).then_some(Format::Text));
        log::init(Sink { file, format, level });
        Ok(())
    }

    /// Before a command that enters a container: makes sure that the container cannot get at the
    /// runtime's binary.
    ///
    /// # Errors
    /// When the binary cannot be protected.
    pub fn protect(&self) -> Result<()> {
        // One that a monitor will stay with is entered by the monitor's own calls.
        match self.command.enters && !run::is_monitored(&self.args) {
            true => selfexe::protect().doing("protect dhow's own binary"),
            false => Ok(()),
        }
    }

    /// Carries the command out; the answer is the exit code.
    ///
    /// # Errors
    /// The command's one error.
    pub fn run(&self) -> Result<i32> {
        let context = self.context()?;
        (self.command.run)(&context, &self.args)
    }

    fn context(&self) -> Result<Context> {
        let globals = &self.globals;
        let rootless = match globals.value("rootless") {
            None | Some("auto") => !geteuid().is_root(),
            Some("true") => true,
            Some("false") => false,
            Some(text) => return Err(unknown("--rootless", text)),
        };
        let driver = match globals.value("cgroup-manager") {
            _ if globals.is_on("systemd-cgroup") => Driver::Systemd,
            None | Some("cgroupfs") => Driver::Cgroupfs,
            Some("systemd") => Driver::Systemd,
            Some("disabled") => Driver::Disabled,
            Some(text) => return Err(unknown("--cgroup-manager", text)),
        };
        Ok(Context::usual(globals.value("root").map(PathBuf::from), driver, rootless))
    }
}

/// The exit code of a command that failed: runc's. exec answers 255, so that it cannot be taken
/// for the payload's own 1.
pub fn exit_code(command: &Command) -> i32 {
    if command.name == "exec" { 255 } else { 1 }
}

fn unknown(flag: &str, value: &str) -> Error {
    Error::new(Class::Usage, format!("unknown value of {flag}")).on(format!("{value:?}"))
}

/// A number, or an error that names the option.
fn number<T: std::str::FromStr>(args: &Args, flag: &str) -> Result<Option<T>> {
    let Some(text) = args.value(flag) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| {
        Error::new(Class::Usage, format!("invalid value of --{flag}"))
            .on(format!("{text:?}"))
            .because("it must be a number")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn fast(line: &str) -> Option<Parsed> {
        parse::parse(&words(line), GLOBALS, COMMANDS)
    }

    /// What engines really say (docs/engines.md), and the same in other orders and forms.
    const LINES: &[&str] = &[
        "--root /r --log /l --log-format json create --bundle /b --pid-file /p id",
        "--root=/r --log-format=json --systemd-cgroup create id --bundle /b --pid-file=/p",
        "create -b /b --no-pivot --no-new-keyring --preserve-fds 3 --console-socket /s id",
        "create -bundle /b -pid-file=/p id",
        "create --root /r id",
        "create --image x",
        "create --image x id -- sh -c true --bundle y",
        "run --image x -e A=1 --rm -v /a:/b --name n -- ls -l",
        "run --image=x -d",
        "start id",
        "state id",
        "kill id",
        "stop --time 3 a b",
        "restart -t 3 a",
        "wait a b",
        "doctor --fix --format json",
        "check --severity high -f json /b",
        "--timings run id",
        "run --timings=/f id",
        "logs -f --tail 3 --since 10m -t id",
        "run -d --restart on-failure:3 --log-driver json-file --log-opt max-size=1m --log-opt max-file=2 id",
        "kill --all id SIGTERM",
        "kill id 9 -a",
        "delete -f id",
        "delete --force=true id",
        "delete --force=false id",
        "run -d --keep --no-subreaper -no-subreaper id",
        "exec --process /f --detach --pid-file /p id",
        "exec --pid-file /p -p /f --detach --tty --console-socket /s id",
        "exec -e A=1 -e B=-x --env C=3 -u 1:2 --cwd /x id ls -l --all -- x",
        "exec -t id sh -c true",
        "ps --format json id",
        "ps --format table id",
        "list --format=json -q",
        "update --resources - id",
        "update --resources=/f id",
        "update -r=- id",
        "update --memory 64m --memory-swap -1 --pids-limit=-1 id",
        "events --stats id",
        "events --interval=5s id",
        "stats a b --no-stream",
        "spec --rootless -b /b",
        "features",
        "--debug=true --rootless=false pause id",
        "resume id",
    ];

    #[test]
    fn both_parsers_agree() {
        for line in LINES {
            let ours = fast(line).unwrap_or_else(|| panic!("{line}: left to clap"));
            let claps = help::parse(&words(line), &FACE).unwrap_or_else(|e| panic!("{line}: {e}"));
            assert_eq!(ours.command.name, claps.command.name, "{line}");
            assert_eq!(ours.args.positionals, claps.args.positionals, "{line}");
            assert_eq!(ours.args.last, claps.args.last, "{line}");
            let normal = |args: &Args, flags: &'static [Flag]| -> Vec<_> {
                flags
                    .iter()
                    .map(|flag| {
                        if flag.value.is_some() {
                            (flag.long, args.values(flag.long), false)
                        } else {
                            (flag.long, Vec::new(), args.is_on(flag.long))
                        }
                    })
                    .collect()
            };
            assert_eq!(
                normal(&ours.args, ours.command.flags),
                normal(&claps.args, ours.command.flags),
                "{line}"
            );
            assert_eq!(normal(&ours.globals, GLOBALS), normal(&claps.globals, GLOBALS), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_claps_to_say() {
        for (line, says) in [
            ("", "Usage"),
            ("nonsense", "unrecognized subcommand 'nonsense'"),
            ("create", "container-id"),
            ("create --bundel /b id", "unexpected argument '--bundel'"),
            ("create --bundle", "flag needs an argument: bundle"),
            ("start a b", "unexpected argument 'b'"),
            ("run --image x a b", "unexpected argument 'b'"),
            ("run -d", "container-id"),
            ("delete --force=maybe id", "maybe"),
        ] {
            assert!(fast(line).is_none(), "{line}");
            match understand(&words(line)) {
                Call::Wrong(text) | Call::Text(text) => assert!(text.contains(says), "{line}: {text}"),
                Call::Command(parsed) => panic!("{line} was taken: {parsed:?}"),
            }
        }
    }

    #[test]
    fn an_id_may_follow_two_dashes() {
        for line in ["create --bundle /b -- id", "run -- id", "state -- id"] {
            let parsed = fast(line).unwrap_or_else(|| panic!("{line}"));
            assert_eq!((parsed.args.id(), parsed.args.last.len()), ("id", 0), "{line}");
        }
        let of_image = fast("run --image x -- sh").unwrap();
        assert_eq!((of_image.args.positionals.len(), &of_image.args.last[..]), (0, &["sh".to_owned()][..]));
        assert!(fast("run -- id sh").is_none());
    }

    #[test]
    fn help_and_version_are_no_errors() {
        for line in ["--help", "create --help", "exec -h", "help", "help run", "--version", "-v"] {
            assert!(matches!(understand(&words(line)), Call::Text(_)), "{line}");
        }
        let Call::Text(version) = understand(&words("--version")) else { panic!() };
        assert!(
            version.starts_with("dhow version ")
                && version.contains("\ncommit: ")
                && version.contains("\nspec: 1.")
        );
    }

    #[test]
    fn commands_of_the_monitor_are_taken_and_not_shown() {
        let shown = |line: &str| match understand(&words(line)) {
            Call::Text(text) | Call::Wrong(text) => text,
            Call::Command(parsed) => panic!("{parsed:?}"),
        };
        let man = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/man/dhow.8")).unwrap();
        for name in ["exited", "revive"] {
            assert!(COMMANDS.iter().any(|command| command.name == name));
            for text in [shown("--help"), shown("help"), shown(""), man.clone()] {
                let names = |line: &str| line.trim_start().starts_with(&format!("{name} "));
                assert!(!text.lines().any(names) && !text.contains(&format!("dhow\\-{name} ")), "{text}");
            }
        }
        assert!(shown("--help").contains("inspect") && man.contains("dhow\\-inspect "));
    }

    #[test]
    fn the_command_line_is_consistent() {
        help::build(&FACE).debug_assert();
    }

    #[test]
    fn options_of_ps_are_its_own() {
        let parsed = fast("ps --format table id -f -o pid --format=x").unwrap();
        assert_eq!(parsed.args.positionals, ["id", "-f", "-o", "pid", "--format=x"]);
        assert_eq!(parsed.args.value("format"), Some("table"));
    }

    #[test]
    fn options_of_the_payload_are_its_own() {
        let parsed = fast("exec id ls --all -d").unwrap();
        assert_eq!(parsed.args.positionals, ["id", "ls", "--all", "-d"]);
        assert!(!parsed.args.is_on("detach"));
    }
}
