//! A terminal: by --console-socket, and the caller's own.

use dhow_integration::{ConsoleSocket, Container, Runner, Scene, Terminal, machine, skip_unless};
use std::fs::OpenOptions;
use std::time::Duration;

fn with_terminal<'s>(scene: &'s Scene, verbs: &[&str]) -> Container<'s> {
    scene.container(|c| {
        c.set("/process/terminal", true).payload(verbs);
    })
}

fn socket(scene: &Scene) -> ConsoleSocket {
    ConsoleSocket::listen(scene.dir().join("console"))
}

#[test]
fn the_master_comes_over_the_console_socket() {
    let scene = Scene::new();
    let console = socket(&scene);
    let c = with_terminal(&scene, &["tty", "--", "read-line", "--", "exit", "4"]);
    c.create_with(&["--console-socket", console.path().to_str().unwrap()]).ok();
    let mut terminal = console.receive();
    c.start().ok();
    let seen = terminal.until("name=").to_owned();
    assert!(seen.contains("isatty=true,true,true") && seen.contains("controlling=true"), "{seen}");
    terminal.until("/dev/pts/0");
    terminal.send("typed\n");
    terminal.until("got 6: typed");
    assert_eq!(c.reap(), 4);
    terminal.until_end();
    c.delete().ok();
    scene.is_clean();
}

#[test]
fn dev_console_is_the_terminal() {
    let scene = Scene::new();
    let console = socket(&scene);
    let c = with_terminal(&scene, &["write", "/dev/console", "through the console"]);
    c.run_kept(&["--detach", "--console-socket", console.path().to_str().unwrap()]).ok();
    let mut terminal = console.receive();
    terminal.until("through the console");
}

#[test]
fn the_terminal_belongs_to_the_payloads_user() {
    let scene = Scene::new();
    let console = socket(&scene);
    let c = scene.container(|c| {
        c.set("/process/terminal", true)
            .set("/process/user", serde_json::json!({ "uid": 1000, "gid": 1000 }))
            .payload(&["stat", "/dev/pts/0", "--", "write", "/dev/tty", "as a user"]);
    });
    c.run_kept(&["--detach", "--console-socket", console.path().to_str().unwrap()]).ok();
    let mut terminal = console.receive();
    let seen = terminal.until("as a user");
    assert!(seen.contains("uid=1000"), "{seen}");
}

#[test]
fn the_size_is_the_configs_and_can_change() {
    let scene = Scene::new();
    let console = socket(&scene);
    let c = scene.container(|c| {
        c.set("/process/terminal", true)
            .set("/process/consoleSize", serde_json::json!({ "width": 101, "height": 37 }))
            .payload(&["size", "--", "tty-wait-resize"]);
    });
    c.run_kept(&["--detach", "--console-socket", console.path().to_str().unwrap()]).ok();
    let mut terminal = console.receive();
    terminal.until("size=101x37");
    terminal.until("ready");
    terminal.resize(120, 40);
    terminal.until("size=120x40");
}

#[test]
fn the_runtimes_terminal_is_passed_through() {
    skip_unless!(machine::has_program("setsid"), "no setsid program (util-linux)");
    let scene = Scene::new();
    let c = with_terminal(&scene, &["tty", "--", "tty-wait-resize", "--", "read-line", "--", "exit", "6"]);
    let (mut terminal, slave) = Terminal::open();
    terminal.resize(90, 30);
    let open = || OpenOptions::new().read(true).write(true).open(&slave).unwrap();
    // A shell wires the terminal to all three; setsid makes it the controlling one.
    let script = format!(
        "exec setsid --ctty --wait {} --root {} run --bundle {} {} <{tty} >{tty} 2>&1",
        dhow_integration::command::binary().display(),
        scene.state_dir().display(),
        c.bundle().display(),
        c.id(),
        tty = slave.display(),
    );
    let keep_open = open();
    let running = Runner::new("/bin/sh").args(["-c", &script]).spawn();
    let seen = terminal.until("ready").to_owned();
    assert!(seen.contains("isatty=true,true,true") && seen.contains("size=90x30"), "{seen}");
    terminal.resize(70, 20);
    terminal.until("size=70x20");
    terminal.send("hello\r");
    terminal.until("got 6: hello");
    running.wait().exits(6);
    // Raw while the container ran, the caller's terminal must be as before now.
    let modes = rustix::termios::tcgetattr(&keep_open).unwrap();
    assert!(modes.local_modes.contains(rustix::termios::LocalModes::ECHO), "echo was not restored");
    assert!(
        modes.local_modes.contains(rustix::termios::LocalModes::ICANON),
        "the line mode was not restored"
    );
    scene.is_clean();
}

/// A run without a terminal of its own is a job of the shell like any other: Ctrl-Z stops dhow, `fg`
/// has it go on, Ctrl-C reaches the payload.
#[test]
fn a_run_in_the_foreground_is_a_job() {
    skip_unless!(machine::has_program("setsid"), "no setsid program (util-linux)");
    let scene = Scene::new();
    let c = scene.payload(&["echo", "begun", "--", "signal-wait", "--", "exit", "7"]);
    let (mut terminal, slave) = Terminal::open();
    let job = scene.dhow(["run", "--bundle", c.bundle().to_str().unwrap(), c.id()]).line().join(" ");
    let script = format!("{job}; echo stopped with $?; fg >/dev/null; echo ended with $?");
    let shell = scene.dir().join("job.sh");
    std::fs::write(&shell, script).unwrap();
    let wired = format!(
        "exec setsid --ctty --wait sh -m {} <{tty} >{tty} 2>&1",
        shell.display(),
        tty = slave.display()
    );
    let running = Runner::new("/bin/sh").args(["-c", &wired]).spawn();
    terminal.until("ready");
    terminal.send("\x1a");
    // 128 + SIGTSTP.
    terminal.until("stopped with 148");
    assert_eq!(c.status(), "running", "the container itself goes on");
    // To be sure that it is `fg` that has the terminal by then, and not the shell.
    dhow_integration::eventually("dhow goes on", || {
        let leader = terminal.foreground().unwrap_or_default();
        let program = std::fs::read_to_string(format!("/proc/{leader}/comm"));
        program.is_ok_and(|name| name.trim() == "dhow")
    });
    terminal.send("\x03");
    terminal.until("SIGINT");
    terminal.until("ended with 7");
    running.wait().ok();
    scene.is_clean();
}

#[test]
fn output_without_end_of_line_is_not_lost() {
    skip_unless!(machine::has_program("setsid"), "no setsid program (util-linux)");
    let scene = Scene::new();
    // 300 lines are more than a pty's buffer: what the payload wrote last must still come.
    let verbs: Vec<String> =
        (0..300).flat_map(|n| ["echo".to_owned(), format!("line-{n}"), "--".to_owned()]).collect();
    let verbs: Vec<&str> = verbs.iter().map(String::as_str).collect();
    let c = with_terminal(&scene, &verbs);
    let (mut terminal, slave) = Terminal::open();
    let script = format!(
        "exec setsid --ctty --wait {} --root {} run --bundle {} {} <{tty} >{tty} 2>&1",
        dhow_integration::command::binary().display(),
        scene.state_dir().display(),
        c.bundle().display(),
        c.id(),
        tty = slave.display(),
    );
    let running = Runner::new("/bin/sh").args(["-c", &script]).spawn();
    let seen = terminal.until("line-299").to_owned();
    assert!((0..300).all(|n| seen.contains(&format!("line-{n}\r\n")) || n == 299), "{seen}");
    running.wait().ok();
}

#[test]
fn run_gives_a_terminal_although_the_caller_has_none() {
    let scene = Scene::new();
    let c = with_terminal(&scene, &["tty"]);
    let outcome = c.run();
    // runc and crun differ here; what counts is a clear answer and nothing left.
    if outcome.code == 0 {
        assert!(outcome.stdout.contains("isatty=true,true,true"), "{outcome}");
    } else {
        outcome.fails(&["terminal"]);
    }
    scene.is_clean();
}

#[test]
fn a_terminal_without_anyone_to_give_it_to_is_refused() {
    let scene = Scene::new();
    let c = with_terminal(&scene, &["tty"]);
    c.create().fails(&["console-socket"]);
    scene.is_clean();
}

#[test]
fn a_console_socket_without_a_terminal_is_refused() {
    let scene = Scene::new();
    let console = socket(&scene);
    let c = scene.payload(&["tty"]);
    c.create_with(&["--console-socket", console.path().to_str().unwrap()]).fails(&["console-socket"]);
    scene.is_clean();
}

#[test]
fn a_console_socket_that_nobody_listens_on_is_named() {
    let scene = Scene::new();
    let c = with_terminal(&scene, &["tty"]);
    let path = scene.dir().join("nobody");
    c.create_with(&["--console-socket", path.to_str().unwrap()])
        .fails(&["nobody", "no such file or directory"]);
    scene.is_clean();
}

#[test]
fn exec_gets_a_terminal_of_its_own() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    let console = socket(&scene);
    let pid_file = scene.dir().join("exec-pid");
    let options = ["--detach", "--tty", "--pid-file", pid_file.to_str().unwrap(), "--console-socket"];
    let argv = ["/payload", "tty", "--", "read-line", "--", "signal-wait"];
    let options = [&options[..], &[console.path().to_str().unwrap()]].concat();
    c.exec_with(&options, &argv).run().ok();
    let mut terminal = console.receive();
    let seen = terminal.until("name=").to_owned();
    assert!(seen.contains("isatty=true,true,true") && seen.contains("controlling=true"), "{seen}");
    terminal.send("x\n");
    terminal.until("got 2: x");
    terminal.until("ready");
    // The terminal's own key: the session in the container has it as its controlling terminal.
    terminal.send("\x03");
    terminal.until("SIGINT");
    terminal.until_end();
    // A detached process falls to the reaper outside, which this test is; a pid namespace does
    // not end before its last process was waited for.
    let pid: i32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).unwrap();
}

#[test]
fn without_a_terminal_nothing_is_sent() {
    let scene = Scene::new();
    let console = socket(&scene);
    scene.payload(&["echo", "hi"]).run().ok().says("hi");
    assert!(!console.has_caller(Duration::from_millis(50)));
}
