//! Socket activation, sd_listen_fds(3): sockets that a service manager opened for the payload.

use crate::spec::Process;

/// How many sockets dhow was given for the payload. They stand right after standard error, where
/// the payload looks for them; its environment says so, with the pid that it has in its container.
pub(super) fn pass_on(process: &mut Process) -> u32 {
    let variable = |name: &str| std::env::var(name).ok();
    let count = given(variable("LISTEN_PID"), variable("LISTEN_FDS"), std::process::id());
    announce(process, count);
    count
}

/// The variables are for one process: those that a parent of dhow's kept are not dhow's.
fn given(pid: Option<String>, fds: Option<String>, own: u32) -> u32 {
    match pid.and_then(|pid| pid.parse::<u32>().ok()) {
        Some(pid) if pid == own => fds.and_then(|fds| fds.parse().ok()).unwrap_or(0),
        _ => 0,
    }
}

fn announce(process: &mut Process, count: u32) {
    if count > 0 {
        process.env.push(format!("LISTEN_FDS={count}"));
        process.env.push("LISTEN_PID=1".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_meant_for_this_process() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(given(text("7"), text("2"), 7), 2);
        assert_eq!(given(text("8"), text("2"), 7), 0);
        assert_eq!(given(None, text("2"), 7), 0);
        assert_eq!(given(text("7"), None, 7), 0);
        assert_eq!(given(text("7"), text("-1"), 7), 0);
    }

    #[test]
    fn the_payload_is_told() {
        let mut process = Process::default();
        announce(&mut process, 0);
        assert!(process.env.is_empty());
        announce(&mut process, 3);
        assert_eq!(process.env, ["LISTEN_FDS=3", "LISTEN_PID=1"]);
    }
}
