//! `ps`: the processes of a container.

use super::container::{Container, Context};
use crate::error::{Class, Context as _, Error, Result};
use crate::state::Operation;
use std::process::Command;

/// The form of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PsFormat {
    /// `[1, 2]`
    Json,
    /// The lines of ps(1) that are about the container, with these arguments.
    Table(Vec<String>),
}

/// Lists the processes of a container.
///
/// # Errors
/// [`Class::WrongState`] when it does not run; what ps(1) says.
pub fn ps(context: &Context, id: &str, format: &PsFormat) -> Result<String> {
    let container = Container::open(context, id)?;
    container.allow(Operation::Ps)?;
    let pids = container.cgroup()?.pids()?;
    match format {
        PsFormat::Json => {
            let list: Vec<String> = pids.iter().map(i32::to_string).collect();
            Ok(format!("[{}]\n", list.join(",")))
        }
        PsFormat::Table(arguments) => table(&pids, arguments),
    }
}

fn table(pids: &[i32], arguments: &[String]) -> Result<String> {
    let default = ["-ef".to_owned()];
    let arguments = if arguments.is_empty() { &default } else { arguments };
    let output = Command::new("ps").args(arguments).output().doing_on("run", || "ps")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::new(Class::Usage, "run")
            .on(format!("ps {}", arguments.join(" ")))
            .because(said.trim()));
    }
    select(&String::from_utf8_lossy(&output.stdout), pids)
}

/// The header, and the lines whose PID column has one of the pids.
fn select(listing: &str, pids: &[i32]) -> Result<String> {
    let mut lines = listing.lines();
    let header = lines.next().unwrap_or_default();
    let column = header.split_whitespace().position(|title| title == "PID").ok_or_else(|| {
        Error::new(Class::Usage, "couldn't find PID field in ps output")
            .hint("the arguments must ask for the column PID")
    })?;
    let mut text = format!("{header}\n");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|field| field.parse().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_chosen_by_the_pid_column() {
        let listing = "USER   PID CMD\nroot     1 init 7\nbob      7 sleep\n";
        assert_eq!(select(listing, &[7]).unwrap(), "USER   PID CMD\nbob      7 sleep\n");
        assert!(select("CMD\nx\n", &[7]).is_err());
    }
}
