//! Why the payload cannot be executed: engines' words first, then the cause, then what to do.
//!
//! All of this runs after a failure, as the payload's user and inside the container: it looks at
//! the file, at what leads to it and at what it needs, and says what it sees.

use super::format::{self, Format};
use super::lookup;
use crate::error::{Class, Error};
use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag, lstat, stat};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, faccessat, getegid, geteuid};
use std::path::{Path, PathBuf};

/// What a look-up would usually search.
const USUAL_PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// How many names of a directory are compared with one that is not there.
const MOST_NAMES: usize = 4096;

/// The error for a file that the look-up did not take, or execve(2) refused.
pub fn refused(name: &str, path: &Path, errno: Errno) -> Error {
    let class = match errno {
        Errno::EACCES | Errno::EISDIR | Errno::EPERM | Errno::ENOEXEC | Errno::ETXTBSY => {
            Class::CommandDenied
        }
        _ => Class::CommandNotFound,
    };
    let error = Error::new(class, format!("exec: {name:?}")).errno(errno);
    match errno {
        Errno::EACCES => denied(error, path),
        Errno::EISDIR => error.hint("process.args must name a program, not a directory"),
        Errno::ENOENT | Errno::ENOTDIR => missing(error, path),
        Errno::ENOEXEC => unknown_format(error, path),
        Errno::ETXTBSY => error
            .because(format!("a process has {} open for writing", path.display()))
            .hint("whatever writes the file must close it first"),
        _ => error,
    }
}

/// The error for an execve(2) that failed although the look-up had found the file.
pub fn exec_failed(name: &str, path: &Path, errno: Errno) -> Error {
    let error = refused(name, path, errno);
    if errno != Errno::ENOENT || stat(path).is_err() {
        return error;
    }
    // The file is there, so what is missing is what it needs to be run.
    let Some(format) = format::of(path) else { return error };
    match format {
        Format::Elf { machine, .. } if is_foreign(machine) => error
            .because(foreign(path, machine))
            .hint("binfmt_misc knows an emulator for it, which the container does not have: register it with the flag F"),
        Format::Script { .. } | Format::Elf { .. } => interpreter(name, path, &format, errno),
        _ => error,
    }
}

/// The error for a program whose interpreter is not there, or may not be executed.
pub fn interpreter(name: &str, path: &Path, format: &Format, errno: Errno) -> Error {
    let class = if errno == Errno::EACCES { Class::CommandDenied } else { Class::CommandNotFound };
    let error = Error::new(class, format!("exec: {name:?}")).errno(errno);
    let (needed, is_script) = match format {
        Format::Script { interpreter, .. } => (interpreter, true),
        Format::Elf { loader: Some(loader), .. } => (loader, false),
        _ => return error,
    };
    let file = path.display();
    if errno == Errno::EACCES {
        let error = denied(error, needed);
        let cause = error.cause.clone().unwrap_or_default();
        return error.because(format!("the interpreter of {file}: {cause}"));
    }
    if !is_script {
        return loader(error, path, needed);
    }
    let text = needed.display().to_string();
    match text.strip_suffix('\r') {
        Some(meant) => error
            .because(format!(
                "the first line of {file} ends with a carriage return, so its interpreter is {text:?}"
            ))
            .hint(format!(
                "it was saved with Windows line ends; `sed -i 's/\\r$//' {file}` makes it {meant}"
            )),
        None => error
            .because(format!("the first line of {file} names {text}, which the container does not have"))
            .hint("install the interpreter, or name another in the first line"),
    }
}

/// A program that was built for a libc which is not there.
fn loader(error: Error, path: &Path, loader: &Path) -> Error {
    let name = loader.file_name().unwrap_or_default().to_string_lossy();
    let (built, hint) = if name.starts_with("ld-musl") {
        (": built for musl", "use an image with musl, such as Alpine's, or a static build")
    } else if name.starts_with("ld-linux") || name.starts_with("ld64") {
        (": built for glibc", "use an image with glibc, such as Debian's, or a static build")
    } else {
        ("", "install it, or use a static build")
    };
    let file = path.display();
    let needed = loader.display();
    error.because(format!("{file} needs {needed}, which the container does not have{built}")).hint(hint)
}

/// EACCES: the mode, the owner, the way to the file, or the mount.
fn denied(error: Error, path: &Path) -> Error {
    let file = path.display();
    let found = match stat(path) {
        Ok(found) => found,
        Err(_) => return unsearchable(error, path),
    };
    let kind = SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits());
    if kind != SFlag::S_IFREG {
        let what = match kind {
            SFlag::S_IFDIR => "a directory",
            SFlag::S_IFIFO => "a fifo",
            SFlag::S_IFSOCK => "a socket",
            _ => "a device",
        };
        return error.because(format!("{file} is {what}")).hint("process.args must name a program");
    }
    if found.st_mode & 0o111 == 0 {
        return error
            .because(format!(
                "{file} has mode {:04o}, without the executable bit, and belongs to {}:{}",
                found.st_mode & 0o7777,
                found.st_uid,
                found.st_gid
            ))
            .hint(format!(
                "`chmod +x {file}` in the image, or name its interpreter before it in process.args"
            ));
    }
    if statvfs(path).is_ok_and(|found| found.flags().contains(FsFlags::ST_NOEXEC)) {
        let at = mount_point(path).map(|at| format!(" at {at}")).unwrap_or_default();
        return error
            .because(format!("{file} lies on a filesystem that is mounted noexec{at}"))
            .hint("take noexec out of the options of the mount, or move the program");
    }
    if !may(path, AccessFlags::X_OK) {
        let user = format!("{}:{}", geteuid(), getegid());
        return error
            .because(format!("{file} has mode {}, and is executed by {user}", owned(&found)))
            .hint("change the file's mode or owner in the image, or process.user");
    }
    // The file itself is fine: what it names may not be.
    match format::of(path) {
        Some(Format::Script { interpreter: next, .. } | Format::Elf { loader: Some(next), .. })
            if stat(&next)
                .is_ok_and(|found| found.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits())
                || !may(&next, AccessFlags::X_OK) =>
        {
            denied(error, &next)
        }
        _ => error
            .because("its mode and mount allow it")
            .hint("a security module denies it: look for AppArmor or SELinux in the kernel's log (`dmesg`)"),
    }
}

/// `0644 and belongs to 0:0`.
fn owned(found: &FileStat) -> String {
    format!("{:04o} and belongs to {}:{}", found.st_mode & 0o7777, found.st_uid, found.st_gid)
}

fn may(path: &Path, access: AccessFlags) -> bool {
    faccessat(nix::fcntl::AT_FDCWD, path, access, nix::fcntl::AtFlags::AT_EACCESS).is_ok()
}

/// The first directory on the way that this process may not search.
fn unsearchable(error: Error, path: &Path) -> Error {
    let mut on_the_way: Vec<&Path> = path.ancestors().skip(1).collect();
    on_the_way.reverse();
    for directory in on_the_way {
        if let Ok(found) = stat(directory)
            && !may(directory, AccessFlags::X_OK)
        {
            let (user, mode) = (format!("{}:{}", geteuid(), getegid()), owned(&found));
            return error
                .because(format!("{user} may not search {}, which has mode {mode}", directory.display()))
                .hint("change the directory's mode or owner, or process.user");
        }
    }
    error
}

/// Where the filesystem of a path is mounted, by this process's own /proc, if it has one.
fn mount_point(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| path.starts_with(point)).max_by_key(|point| point.len()).map(str::to_owned)
}

/// ENOENT and ENOTDIR: how far the way leads, and what there is instead.
fn missing(error: Error, path: &Path) -> Error {
    let mut on_the_way: Vec<&Path> = path.ancestors().filter(|part| !part.as_os_str().is_empty()).collect();
    on_the_way.reverse();
    let gone = on_the_way.iter().copied().find(|part| stat(*part).is_err());
    if let Some(part) = gone
        && lstat(part).is_ok()
        && let Ok(target) = std::fs::read_link(part)
    {
        let (part, target) = (part.display(), target.display());
        return error
            .because(format!("{part} is a symbolic link to {target}, which is not there"))
            .hint("a link is followed inside the container, not on the host");
    }
    let is_file =
        |part: &&&Path| stat(**part).is_ok_and(|f| f.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFDIR.bits());
    if error.errno == Some(Errno::ENOTDIR as i32)
        && let Some(part) = on_the_way.iter().find(is_file)
    {
        return error.because(format!("{} is a file", part.display()));
    }
    let Some(part) = gone else { return error };
    let error = match part == path {
        true => error.because("the container has no such file"),
        false => error.because(format!("the container has no {}", part.display())),
    };
    let (Some(parent), Some(name)) = (part.parent(), part.file_name()) else { return error };
    match near(&name.to_string_lossy(), [parent.to_owned()]) {
        Some(near) => error.hint(format!("did you mean {:?}?", near.display().to_string())),
        None => error.hint("paths in process.args are the container's, not the host's"),
    }
}

/// ENOEXEC: what the file is instead of a program.
fn unknown_format(error: Error, path: &Path) -> Error {
    let file = path.display();
    match format::of(path) {
        Some(Format::Elf { machine, .. }) if is_foreign(machine) => error
            .because(foreign(path, machine))
            .hint("binfmt_misc has no emulator for it: install qemu-user-static, or use an image for this machine"),
        Some(Format::Elf { .. }) => error
            .because(format!("{file} is a program for this machine that the kernel does not take"))
            .hint("it is damaged, or it is not a program but an object file or a library"),
        Some(Format::Empty) => error.because(format!("{file} is empty")),
        Some(Format::Other(head)) if head.starts_with(b"\xef\xbb\xbf") => error
            .because(format!("{file} begins with a byte order mark"))
            .hint("the first two bytes of a script must be #!: save it as UTF-8 without BOM"),
        Some(Format::Other(head)) if head.starts_with(b"MZ") => {
            error.because(format!("{file} is a Windows program"))
        }
        _ => error
            .because(format!("{file} is neither a program for this machine nor a script that begins with #!"))
            .hint("a script needs a first line such as #!/bin/sh"),
    }
}

fn is_foreign(machine: u16) -> bool {
    machine != format::NATIVE
}

fn foreign(path: &Path, machine: u16) -> String {
    let (theirs, ours) = (format::machine_name(machine), format::machine_name(format::NATIVE));
    let article = if theirs.starts_with(['a', 'i', 'x']) { "an" } else { "a" };
    format!("{} is {article} {theirs} binary on {ours}", path.display())
}

/// The error for a name that no directory of PATH has.
pub fn not_in_path(name: &str, environment: &[String]) -> Error {
    let error = Error::new(Class::CommandNotFound, format!("exec: {name:?}"));
    let searched = lookup::variable(environment, "PATH");
    let path = searched.unwrap_or(lookup::DEFAULT_PATH);
    let cause = match searched {
        Some(_) => format!("executable file not found in $PATH: searched {path}"),
        None => format!("executable file not found in $PATH: there is none, so {path} was searched"),
    };
    let error = error.because(cause);
    if name.contains(char::is_whitespace) {
        return error.hint(
            "the first word of process.args is the program alone: its arguments are words of their own",
        );
    }
    let directories: Vec<PathBuf> = path.split(':').map(PathBuf::from).collect();
    let elsewhere = USUAL_PATH.iter().map(Path::new).filter(|usual| !directories.iter().any(|d| d == usual));
    for directory in elsewhere {
        let candidate = directory.join(name);
        if stat(&candidate).is_ok_and(|found| found.st_mode & 0o111 != 0) {
            return error.hint(format!(
                "{} is there: add {} to PATH",
                candidate.display(),
                directory.display()
            ));
        }
    }
    match near(name, directories) {
        Some(near) => error.hint(format!("did you mean {:?}?", near.display().to_string())),
        None => error.hint("the image does not have it, or PATH in process.env is not the image's"),
    }
}

/// The error for a working directory that cannot be entered.
pub fn cwd_failed(cwd: &str, errno: Errno) -> Error {
    let error = Error::system("change to the working directory", errno).on(format!("process.cwd {cwd:?}"));
    match errno {
        Errno::ENOENT => error.class(Class::Config).hint("make it in the image, or change process.cwd"),
        Errno::ENOTDIR => error.class(Class::Config).hint("process.cwd must be a directory of the container"),
        // getcwd(2) says ENOENT for a directory outside the root.
        Errno::EXDEV => error.class(Class::Config).because("it lies outside the container"),
        // The directory itself must be searched too.
        Errno::EACCES => unsearchable(error, &Path::new(cwd).join(".")),
        _ => error,
    }
}

/// The name in some directories that is most like one that is not there.
fn near(name: &str, directories: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    let most = if name.chars().count() <= 3 { 1 } else { 2 };
    let mut best: Option<(usize, PathBuf)> = None;
    for directory in directories {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten().take(MOST_NAMES) {
            let distance = distance(name, &entry.file_name().to_string_lossy());
            if distance <= most && best.as_ref().is_none_or(|(least, _)| distance < *least) {
                best = Some((distance, directory.join(entry.file_name())));
            }
        }
    }
    best.map(|(_, path)| path)
}

/// How many letters must be changed, added, taken out, or swapped with their neighbour.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut rows = vec![(0..=to.len()).collect::<Vec<usize>>()];
    for (i, a) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in to.iter().enumerate() {
            let mut cost = (rows[i][j] + usize::from(a != b)).min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && from[i - 1] == *b && to[j - 1] == *a {
                cost = cost.min(rows[i - 1][j - 1] + 1);
            }
            row.push(cost);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names() {
        for (from, to, is) in [("bahs", "bash", 1), ("pyhton", "python", 1), ("sh", "ssh", 1), ("", "ab", 2)]
        {
            assert_eq!(distance(from, to), is, "{from} {to}");
        }
        assert_eq!(near("bahs", [PathBuf::from("/nonexistent"), "/bin".into()]), Some("/bin/bash".into()));
        assert_eq!(near("no-such-thing-at-all", ["/bin".into()]), None);
    }
}
