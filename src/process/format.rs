//! What kind of program a file is: as much of exec's own reading of it as explains a failure.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What the kernel looks at of a script (`BINPRM_BUF_SIZE`, linux/binfmts.h).
const LINE: usize = 256;

/// What is read at once: of a usual program all that is looked at here.
const HEAD: usize = 1024;

/// `EM_386` of elf(5).
pub const I386: u16 = 3;

/// `e_machine` of this build, elf(5).
pub const NATIVE: u16 = if cfg!(target_arch = "x86_64") {
    62
} else if cfg!(target_arch = "aarch64") {
    183
} else {
    0
};

/// The kind of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// It begins with `#!`.
    Script {
        /// The interpreter that its first line names.
        interpreter: PathBuf,
        /// What stands behind it on the line; the kernel hands it over as one argument.
        argument: Option<String>,
    },
    /// An ELF file.
    Elf {
        /// `e_machine`.
        machine: u16,
        /// Whether it is a 64-bit file.
        wide: bool,
        /// The loader that it names (`PT_INTERP`).
        loader: Option<PathBuf>,
    },
    /// Nothing is in it.
    Empty,
    /// It begins as these bytes do.
    Other(Vec<u8>),
}

/// Looks at a file. `None` when it cannot be read, which keeps nobody from executing it (mode
/// 0111), or is no file at all.
pub fn of(path: &Path) -> Option<Format> {
    // A fifo must not make the runtime wait, nor a terminal become its own.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut head = [0; HEAD];
    let length = file.read_at(&mut head, 0).ok()?;
    let head = &head[..length];
    Some(if head.is_empty() {
        Format::Empty
    } else if let Some((interpreter, argument)) = script(&head[..length.min(LINE)]) {
        Format::Script { interpreter, argument }
    } else if head.starts_with(b"\x7fELF") && length >= 52 {
        elf(&file, head)
    } else {
        Format::Other(head[..length.min(4)].to_vec())
    })
}

/// The interpreter and the argument of a `#!` line, as the kernel reads it (binfmt_script.c):
/// blanks before the name are skipped, a blank or the line's end ends it.
fn script(head: &[u8]) -> Option<(PathBuf, Option<String>)> {
    let line = head.strip_prefix(b"#!")?;
    // A line that is longer than what the kernel looks at is its own to judge.
    let end = line.iter().position(|&byte| byte == b'\n').or((head.len() < LINE).then_some(line.len()))?;
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t' | 0);
    let line = &line[..end];
    let start = line.iter().position(|byte| !is_blank(byte))?;
    let line = &line[start..];
    let (name, rest) = line.split_at(line.iter().position(is_blank).unwrap_or(line.len()));
    let rest = String::from_utf8_lossy(rest).trim_matches([' ', '\t', '\0']).to_owned();
    Some((std::ffi::OsStr::from_bytes(name).into(), (!rest.is_empty()).then_some(rest)))
}

/// The machine and the loader of an ELF file. What is unusual about it is the kernel's to judge:
/// no loader is known of it then.
fn elf(file: &File, head: &[u8]) -> Format {
    let (wide, little) = (head[4] == 2, head[5] != 2);
    let machine = [head[18], head[19]];
    let machine = if little { u16::from_le_bytes(machine) } else { u16::from_be_bytes(machine) };
    let loader = if little { loader(file, head, wide) } else { None };
    Format::Elf { machine, wide, loader }
}

fn loader(file: &File, head: &[u8], wide: bool) -> Option<PathBuf> {
    const PT_INTERP: u32 = 3;
    const MOST_ENTRIES: usize = 64;
    const LONGEST_PATH: usize = 4096;
    let two = |at: usize| Some(usize::from(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?)));
    // Where the header and its entries have what, for the 64 and the 32 bits of elf(5).
    let (table, size, count, entry_size) = match wide {
        true => (number(head, 32, true)?, two(54)?, two(56)?, 56),
        false => (number(head, 28, false)?, two(42)?, two(44)?, 32),
    };
    if size != entry_size || count > MOST_ENTRIES {
        return None;
    }
    let entries = part(file, head, table, entry_size * count)?;
    let entry = entries.chunks_exact(entry_size).find(|entry| entry[..4] == PT_INTERP.to_le_bytes())?;
    let (offset, length) = match wide {
        true => (number(entry, 8, true)?, number(entry, 32, true)?),
        false => (number(entry, 4, false)?, number(entry, 16, false)?),
    };
    let length = usize::try_from(length).ok().filter(|length| (2..=LONGEST_PATH).contains(length))?;
    let path = part(file, head, offset, length)?;
    let path = path.split(|&byte| byte == 0).next()?;
    path.starts_with(b"/").then(|| std::ffi::OsStr::from_bytes(path).into())
}

/// A number of eight or four bytes.
fn number(bytes: &[u8], at: usize, wide: bool) -> Option<u64> {
    Some(match wide {
        true => u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?),
        false => u64::from(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)),
    })
}

/// A part of a file: of what has been read of it already, or read now.
fn part(file: &File, head: &[u8], offset: u64, length: usize) -> Option<Vec<u8>> {
    let start = usize::try_from(offset).ok()?;
    if let Some(bytes) = head.get(start..start.checked_add(length)?) {
        return Some(bytes.to_vec());
    }
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

/// The name of a machine, elf(5).
pub fn machine_name(machine: u16) -> String {
    let name = match machine {
        I386 => "i386",
        8 => "mips",
        20 => "ppc",
        21 => "ppc64",
        22 => "s390x",
        40 => "arm",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv64",
        258 => "loongarch64",
        other => return format!("machine {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(head: &str) -> Option<(String, Option<String>)> {
        script(head.as_bytes()).map(|(path, argument)| (path.display().to_string(), argument))
    }

    #[test]
    fn the_first_line_is_read_as_the_kernel_reads_it() {
        assert_eq!(line("#!/bin/sh\necho"), Some(("/bin/sh".into(), None)));
        assert_eq!(
            line("#! \t/usr/bin/env  -S a b \n"),
            Some(("/usr/bin/env".into(), Some("-S a b".into())))
        );
        assert_eq!(line("#!/bin/sh"), Some(("/bin/sh".into(), None)));
        assert_eq!(line("#!/bin/sh\r\n"), Some(("/bin/sh\r".into(), None)));
        assert_eq!(line("#!\n"), None);
        assert_eq!(line("/bin/sh\n"), None);
        assert_eq!(line(&format!("#!/{}", "x".repeat(300))[..LINE]), None);
    }

    #[test]
    fn programs_of_this_machine() {
        let Some(Format::Elf { machine, wide, loader }) = of(Path::new("/bin/ls")) else { panic!() };
        assert_eq!((machine, wide), (NATIVE, true));
        assert!(loader.unwrap().display().to_string().contains("/ld-"));
        assert_eq!(of(Path::new("/dev/null")), None);
        assert_eq!(of(Path::new("/")), None);
    }
}
