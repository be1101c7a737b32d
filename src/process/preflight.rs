//! What can be said about an executable before it is executed.
//!
//! The kernel's exec decides, and this only explains: a file is refused here for nothing but what
//! execve(2) would certainly fail for, an interpreter that is not there. Formats that the kernel
//! may have learnt by binfmt_misc are left to it.

use crate::error::{Class, Error, Result};
use nix::errno::Errno;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What the kernel looks at of a file (`BINPRM_BUF_SIZE`, linux/binfmts.h).
const HEAD: usize = 256;

/// How many interpreters of interpreters the kernel follows before it says ELOOP (exec.c).
const MOST_INTERPRETERS: usize = 5;

/// Looks whether the interpreters of a program are there, as the user that will execute it.
///
/// # Errors
/// [`Class::CommandNotFound`], naming the interpreter.
pub fn check(name: &str, path: &Path) -> Result<()> {
    let mut path = path.to_owned();
    for _ in 0..MOST_INTERPRETERS {
        // What cannot be read can still be executed (mode 0111): nothing is known about it.
        let Ok(file) = open(&path) else { return Ok(()) };
        let mut head = [0; HEAD];
        let Ok(length) = read_head(&file, &mut head) else { return Ok(()) };
        let (interpreter, hint) = if let Some(interpreter) = script_interpreter(&head[..length]) {
            let carriage_return = interpreter.as_os_str().as_encoded_bytes().ends_with(b"\r");
            let hint = if carriage_return {
                "its first line ends with a carriage return: it was saved with Windows line ends"
            } else {
                "the first line of the script names an interpreter that the container does not have"
            };
            (interpreter, hint)
        } else if let Some(interpreter) = elf_interpreter(&file, &head[..length]) {
            (interpreter, "the program needs a dynamic loader that the container does not have")
        } else {
            return Ok(());
        };
        match nix::sys::stat::stat(&interpreter) {
            Err(errno @ (Errno::ENOENT | Errno::ENOTDIR)) => {
                return Err(Error::new(Class::CommandNotFound, format!("exec: {name:?}"))
                    .because(format!(
                        "interpreter {:?} of {}",
                        interpreter.display().to_string(),
                        path.display()
                    ))
                    .errno(errno)
                    .hint(hint));
            }
            _ => path = interpreter,
        }
    }
    Ok(())
}

fn open(path: &Path) -> std::io::Result<File> {
    // A fifo must not make the runtime wait, nor a terminal become its own.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::ErrorKind::InvalidInput.into()) }
}

fn read_head(mut file: &File, head: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < head.len() {
        match file.read(&mut head[length..])? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}

/// The interpreter of a `#!` line, as the kernel reads it (binfmt_script.c): blanks before the
/// name are skipped, a blank or the line's end ends it.
fn script_interpreter(head: &[u8]) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let line = head.strip_prefix(b"#!")?;
    // A line that is longer than what the kernel looks at is its own to judge.
    let end = line.iter().position(|&byte| byte == b'\n').or((head.len() < HEAD).then_some(line.len()))?;
    let mut words =
        line[..end].split(|byte| matches!(byte, b' ' | b'\t' | 0)).filter(|word| !word.is_empty());
    words.next().map(|word| std::ffi::OsStr::from_bytes(word).into())
}

/// The loader that a 64-bit ELF program of this machine names (PT_INTERP, elf(5)). Whatever is
/// unusual about the file is the kernel's to judge.
fn elf_interpreter(file: &File, head: &[u8]) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    const PT_INTERP: u32 = 3;
    const ENTRY: usize = 56;
    const MOST_ENTRIES: usize = 64;
    const LONGEST_PATH: usize = 4096;
    if head.len() < 64 || !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let two = |at: usize| head.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes);
    let table = u64::from_le_bytes(head.get(32..40)?.try_into().ok()?);
    let (size, count) = (usize::from(two(54)?), usize::from(two(56)?));
    if two(18)? != NATIVE_MACHINE || size != ENTRY || count > MOST_ENTRIES {
        return None;
    }
    let mut entries = vec![0; ENTRY * count];
    file.read_exact_at(&mut entries, table).ok()?;
    let eight = |entry: &[u8], at: usize| entry[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    let entry = entries.chunks_exact(ENTRY).find(|entry| entry[..4] == PT_INTERP.to_le_bytes())?;
    let (offset, length) = (eight(entry, 8)?, usize::try_from(eight(entry, 32)?).ok()?);
    if !(2..=LONGEST_PATH).contains(&length) {
        return None;
    }
    let mut path = vec![0; length];
    file.read_exact_at(&mut path, offset).ok()?;
    let path = path.split(|&byte| byte == 0).next()?;
    path.starts_with(b"/").then(|| std::ffi::OsStr::from_bytes(path).into())
}

/// `e_machine` of this build, elf(5).
const NATIVE_MACHINE: u16 = if cfg!(target_arch = "x86_64") {
    62
} else if cfg!(target_arch = "aarch64") {
    183
} else {
    0
};

#[cfg(test)]
mod tests {
    use super::*;

    fn interpreter(head: &str) -> Option<String> {
        script_interpreter(head.as_bytes()).map(|path| path.display().to_string())
    }

    #[test]
    fn the_first_line_is_read_as_the_kernel_reads_it() {
        assert_eq!(interpreter("#!/bin/sh\necho"), Some("/bin/sh".into()));
        assert_eq!(interpreter("#! \t/usr/bin/env  -S a b\n"), Some("/usr/bin/env".into()));
        assert_eq!(interpreter("#!/bin/sh"), Some("/bin/sh".into()));
        assert_eq!(interpreter("#!/bin/sh\r\n"), Some("/bin/sh\r".into()));
        assert_eq!(interpreter("#!\n"), None);
        assert_eq!(interpreter("/bin/sh\n"), None);
        assert_eq!(interpreter(&format!("#!/{}", "x".repeat(300))[..HEAD]), None);
    }

    #[test]
    fn programs_of_this_machine_pass_and_a_missing_loader_is_named() {
        for program in ["/bin/sh", "/proc/self/exe", "/bin/ls"] {
            check("x", Path::new(program)).unwrap();
        }
        let broken = std::env::temp_dir().join(format!("dhow-preflight-{}", std::process::id()));
        let mut text = std::fs::read("/bin/ls").unwrap();
        let at = text.windows(7).position(|window| window == b"/lib64/").unwrap();
        text[at..at + 7].copy_from_slice(b"/lib99/");
        std::fs::write(&broken, text).unwrap();
        let error = check("x", &broken).unwrap_err();
        assert_eq!(error.class, Class::CommandNotFound);
        assert!(error.to_string().contains("interpreter \"/lib99/ld-linux"), "{error}");
        assert!(error.to_string().contains("no such file or directory"), "{error}");
        std::fs::remove_file(broken).unwrap();
    }
}
