//! What the tests run inside a container: one static program that looks around and says
//! what it sees.
//!
//! `payload VERB [ARG…] [-- VERB [ARG…]]…` runs the verbs in order. A verb prints its findings
//! on stdout; one that fails prints `! VERB: ERRNO` there, so that a test can ask for the exact
//! error, the next verb still runs, and the exit status is 1 in the end.

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use std::fs;
use std::io::{self, BufRead, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::process::{Command, exit};
use std::thread::sleep;
use std::time::Duration;

/// How a verb ends: with its errno when it could not look.
type Verb = io::Result<()>;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut failed = args.is_empty();
    if failed {
        println!("! no verb");
    }
    for words in args.split(|word| word == "--").filter(|words| !words.is_empty()) {
        if let Err(error) = run(&words[0], &words[1..]) {
            println!("! {}: {}", words[0], name_of(&error));
            failed = true;
        }
        let _ = io::stdout().flush();
    }
    exit(i32::from(failed));
}

/// An error as a test asks for it: the errno's symbol where there is one.
fn name_of(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => format!("{:?}", Errno::from_raw(code)),
        None => error.to_string(),
    }
}

fn run(verb: &str, args: &[String]) -> Verb {
    match verb {
        "ids" | "caps" | "rlimits" | "no-new-privs" | "dumpable" | "pid" | "signals" | "umask" | "status" => {
            own(verb, args)
        }
        "cat" | "write" | "append" | "stat" | "ls" | "touch" | "mkdir" | "mknod" | "readlink" | "access"
        | "unlink" | "fs" => file(verb, args),
        "env" | "hostname" | "cwd" | "ns" | "mounts" | "fds" | "cgroup" | "oom-score-adj" | "timens"
        | "loopback" | "interfaces" | "label" => around(verb, args),
        "tty" | "tty-wait-resize" | "read-line" | "size" => terminal(verb, args),
        _ => act(verb, args),
    }
}

/// The argument at `at`, or an error that says that the test is wrong.
fn arg(args: &[String], at: usize) -> io::Result<&str> {
    args.get(at).map(String::as_str).ok_or_else(|| io::Error::other("argument missing"))
}

fn number<T: std::str::FromStr>(args: &[String], at: usize) -> io::Result<T> {
    arg(args, at)?.parse().map_err(|_| io::Error::other("not a number"))
}

/// What the kernel knows of this process.
fn own(verb: &str, args: &[String]) -> Verb {
    use nix::unistd::{getegid, geteuid, getgid, getgroups, getpgrp, getpid, getppid, getsid, getuid};
    match verb {
        "ids" => {
            let groups: Vec<String> = getgroups()?.iter().map(ToString::to_string).collect();
            println!("uid={} euid={} gid={} egid={}", getuid(), geteuid(), getgid(), getegid());
            println!("groups={}", groups.join(","));
        }
        "umask" => {
            let mask = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
            println!("umask={:04o}", mask.bits());
        }
        "caps" => caps()?,
        "rlimits" => print!("{}", fs::read_to_string("/proc/self/limits")?),
        "no-new-privs" => println!("no-new-privs={}", rustix::thread::no_new_privs()?),
        "dumpable" => println!("dumpable={:?}", rustix::process::dumpable_behavior()?),
        "pid" => println!("pid={} ppid={} pgrp={} sid={}", getpid(), getppid(), getpgrp(), getsid(None)?),
        "signals" | "status" => {
            // Rust's start makes SIGPIPE ignored, so `signals` must not claim to see what came before.
            let wanted: &[&str] = if verb == "signals" { &["SigBlk", "SigPnd", "ShdPnd"] } else { &[] };
            for line in fs::read_to_string("/proc/self/status")?.lines() {
                let key = line.split(':').next().unwrap_or_default();
                if wanted.contains(&key) || args.iter().any(|a| a == key) {
                    println!("{line}");
                }
            }
        }
        _ => unreachable!("run() sends only the verbs above"),
    }
    Ok(())
}

/// The five capability sets, by name. Asks the kernel, not /proc.
fn caps() -> Verb {
    use rustix::thread::{CapabilitySet, capabilities};
    let named = |set: CapabilitySet| {
        set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect::<Vec<_>>().join(",")
    };
    let known = CapabilitySet::all().iter_names().map(|(_, cap)| cap);
    let (mut bounding, mut ambient) = (CapabilitySet::empty(), CapabilitySet::empty());
    for cap in known {
        // A kernel older than a capability answers EINVAL: it is in no set then.
        if rustix::thread::capability_is_in_bounding_set(cap).unwrap_or(false) {
            bounding |= cap;
        }
        if rustix::thread::capability_is_in_ambient_set(cap).unwrap_or(false) {
            ambient |= cap;
        }
    }
    let sets = capabilities(None)?;
    println!("effective={}", named(sets.effective));
    println!("permitted={}", named(sets.permitted));
    println!("inheritable={}", named(sets.inheritable));
    println!("bounding={}", named(bounding));
    println!("ambient={}", named(ambient));
    Ok(())
}

/// Files: what is there, and what may be done with it.
fn file(verb: &str, args: &[String]) -> Verb {
    let path = arg(args, 0)?;
    match verb {
        "cat" => io::stdout().write_all(&fs::read(path)?)?,
        "write" => fs::write(path, arg(args, 1)?)?,
        "append" => fs::OpenOptions::new().append(true).open(path)?.write_all(arg(args, 1)?.as_bytes())?,
        "touch" => drop(fs::OpenOptions::new().append(true).create(true).open(path)?),
        "mkdir" => fs::create_dir(path)?,
        "unlink" => fs::remove_file(path)?,
        "readlink" => println!("{}", fs::read_link(path)?.display()),
        "access" => {
            fs::File::open(path)?;
            println!("readable {path}");
        }
        "stat" => stat(path)?,
        "ls" => {
            let names = fs::read_dir(path)?.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()));
            let mut names = names.collect::<io::Result<Vec<_>>>()?;
            names.sort();
            println!("{}", names.join(" "));
        }
        "mknod" => {
            use nix::sys::stat::{Mode, SFlag, makedev, mknod};
            let kind = if arg(args, 1)? == "b" { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
            let device = makedev(number(args, 2)?, number(args, 3)?);
            mknod(path, kind, Mode::from_bits_truncate(0o666), device)?;
        }
        "fs" => {
            let fs = nix::sys::statvfs::statvfs(path)?;
            println!("{path} size={} flags={:?}", fs.blocks() * fs.fragment_size(), fs.flags());
        }
        _ => unreachable!("run() sends only the verbs above"),
    }
    Ok(())
}

fn stat(path: &str) -> Verb {
    let meta = fs::symlink_metadata(path)?;
    let kind = match meta.file_type() {
        t if t.is_dir() => "directory",
        t if t.is_symlink() => "link",
        t if t.is_char_device() => "char",
        t if t.is_block_device() => "block",
        t if t.is_fifo() => "fifo",
        t if t.is_socket() => "socket",
        _ => "file",
    };
    let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
    println!(
        "{path} {kind} mode={:04o} uid={} gid={} size={} rdev={major}:{minor}",
        meta.permissions().mode() & 0o7777,
        meta.uid(),
        meta.gid(),
        meta.size(),
    );
    Ok(())
}

/// What this process was given, and where it lives.
fn around(verb: &str, args: &[String]) -> Verb {
    match verb {
        "env" => {
            for (key, value) in std::env::vars_os() {
                println!("{}={}", key.to_string_lossy(), value.to_string_lossy());
            }
        }
        "hostname" => {
            let names = rustix::system::uname();
            println!("{} {}", names.nodename().to_string_lossy(), names.domainname().to_string_lossy());
        }
        "cwd" => println!("{}", std::env::current_dir()?.display()),
        "mounts" => print!("{}", fs::read_to_string("/proc/self/mountinfo")?),
        "cgroup" => print!("{}", fs::read_to_string("/proc/self/cgroup")?),
        "oom-score-adj" => print!("{}", fs::read_to_string("/proc/self/oom_score_adj")?),
        "label" => {
            println!("{}", fs::read_to_string("/proc/self/attr/current")?.trim_end_matches(['\0', '\n']));
        }
        "timens" => {
            print!("{}", fs::read_to_string("/proc/self/timens_offsets")?);
            print!("uptime {}", fs::read_to_string("/proc/uptime")?);
        }
        "ns" => {
            for kind in ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"] {
                println!("{kind} {}", fs::read_link(format!("/proc/self/ns/{kind}"))?.display());
            }
        }
        "fds" => fds()?,
        "interfaces" => {
            // The file's first two lines are its heading.
            for line in fs::read_to_string("/proc/net/dev")?.lines().skip(2) {
                println!("{}", line.split(':').next().unwrap_or_default().trim());
            }
        }
        "loopback" => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            TcpStream::connect(listener.local_addr()?)?;
            println!("loopback works");
        }
        _ => unreachable!("run() sends only the verbs above: {args:?}"),
    }
    Ok(())
}

/// Every open fd but the one that looks.
fn fds() -> Verb {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // The directory that is being read has an fd too; it is gone when its link is read later.
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    for (fd, path) in found {
        if let Ok(target) = fs::read_link(&path) {
            println!("{fd} {}", target.display());
        }
    }
    Ok(())
}

fn print_size() -> Verb {
    let size = rustix::termios::tcgetwinsize(io::stdin())?;
    println!("size={}x{}", size.ws_col, size.ws_row);
    Ok(())
}

/// The terminal.
fn terminal(verb: &str, _args: &[String]) -> Verb {
    match verb {
        "size" => print_size()?,
        "tty" => {
            use rustix::termios::{OutputModes, isatty, tcgetattr, ttyname};
            let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
            println!("isatty={},{},{}", isatty(&stdin), isatty(&stdout), isatty(&stderr));
            println!("controlling={}", fs::File::open("/dev/tty").is_ok());
            print_size()?;
            println!("onlcr={}", tcgetattr(&stdin)?.output_modes.contains(OutputModes::ONLCR));
            println!("name={}", ttyname(&stdin, Vec::new())?.to_string_lossy());
        }
        "tty-wait-resize" => {
            let mut set = SigSet::empty();
            set.add(Signal::SIGWINCH);
            set.thread_block()?;
            println!("ready");
            set.wait()?;
            print_size()?;
        }
        "read-line" => {
            let mut line = String::new();
            let n = io::stdin().lock().read_line(&mut line)?;
            println!("got {n}: {}", line.trim_end());
        }
        _ => unreachable!("run() sends only the verbs above"),
    }
    Ok(())
}

/// Verbs that do something.
fn act(verb: &str, args: &[String]) -> Verb {
    match verb {
        "exit" => {
            let _ = io::stdout().flush();
            exit(number(args, 0)?);
        }
        "echo" => println!("{}", args.join(" ")),
        "args" => args.iter().for_each(|a| println!("[{a}]")),
        "stderr" => eprintln!("{}", args.join(" ")),
        "sleep" => sleep(Duration::from_secs_f64(number(args, 0)?)),
        "signal-wait" => signal_wait()?,
        "overwrite-exe" => overwrite_exe(number(args, 0)?),
        "spy" => spy(number(args, 0)?),
        "traced" => traced(args)?,
        "raise" => nix::sys::signal::raise(arg(args, 0)?.parse()?)?,
        "spin" => loop {
            std::hint::spin_loop();
        },
        "alloc" => {
            let megabytes: usize = number(args, 0)?;
            // Ones, not zeroes: zeroes would be untouched pages that cost nothing.
            let memory = vec![1u8; megabytes << 20];
            println!("allocated {} MB", memory.iter().filter(|byte| **byte == 1).count() >> 20);
        }
        "fork-tree" => {
            let me = std::env::args().next().unwrap_or_default();
            let count: usize = number(args, 0)?;
            for _ in 0..count {
                Command::new(&me).args(["sleep", "1000"]).spawn()?;
            }
            println!("ready {count}");
            sleep(Duration::from_secs(1000));
        }
        "criu" => criu(arg(args, 0)?, number(args, 1)?)?,
        "flip" => flip(arg(args, 0)?, arg(args, 1)?)?,
        _ => ask(verb, args)?,
    }
    Ok(())
}

/// Verbs that ask the kernel for one thing.
fn ask(verb: &str, args: &[String]) -> Verb {
    match verb {
        "chown" => {
            std::os::unix::fs::chown(arg(args, 0)?, Some(number(args, 1)?), Some(number(args, 2)?))?;
        }
        "sethostname" => nix::unistd::sethostname(arg(args, 0)?)?,
        "mount-tmpfs" => nix::mount::mount(
            Some("tmpfs"),
            arg(args, 0)?,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )?,
        "chroot" => nix::unistd::chroot(arg(args, 0)?)?,
        "sd-notify" => {
            let socket = std::os::unix::net::UnixDatagram::unbound()?;
            let path = std::env::var("NOTIFY_SOCKET").map_err(io::Error::other)?;
            socket.send_to(arg(args, 0)?.replace("\\n", "\n").as_bytes(), path)?;
        }
        "fallocate" => {
            let file = fs::File::create(arg(args, 0)?)?;
            let length = number::<u64>(args, 1)? << 20;
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length)?;
        }
        "read-direct" => read_direct(arg(args, 0)?, number(args, 1)?)?,
        "send-to-loopback" => {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
            for _ in 0..3 {
                socket.send_to(b"x", socket.local_addr()?)?;
            }
        }
        "personality" => {
            let persona = nix::sys::personality::Persona::from_bits_retain(number(args, 0)?);
            let _ = nix::sys::personality::set(persona)?;
        }
        "socket" => {
            let family = rustix::net::AddressFamily::from_raw(number(args, 0)?);
            drop(rustix::net::socket(family, rustix::net::SocketType::STREAM, None)?);
        }
        _ => return Err(io::Error::other("unknown verb")),
    }
    Ok(())
}

/// Toggles a name between a directory and a symlink, as fast as it can.
fn flip(name: &str, target: &str) -> Verb {
    let (kept, link) = (format!("{name}.dir"), format!("{name}.link"));
    std::os::unix::fs::symlink(target, &link)?;
    loop {
        fs::rename(name, &kept)?;
        fs::rename(&link, name)?;
        fs::rename(name, &link)?;
        fs::rename(&kept, name)?;
    }
}

/// Is criu to a `restore`, on the socket of that number: has a process that sleeps to show for an
/// image. As `killer` it ends the runtime, two levels up, in place of an answer.
fn criu(way: &str, socket: i32) -> Verb {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    let socket = pidfd_getfd(&pidfd_open(getpid(), PidfdFlags::empty())?, socket, PidfdGetfdFlags::empty())?;
    let mut request = vec![0_u8; 64 << 10];
    rustix::net::recv(&socket, &mut request[..], rustix::net::RecvFlags::empty())?;
    let me = std::env::args().next().unwrap_or_default();
    let mut pid = Command::new(&me).args(["sleep", "1000"]).spawn()?.id();
    if way == "killer" {
        nix::sys::signal::kill(nix::unistd::getppid(), Signal::SIGKILL)?;
        return Ok(());
    }
    let mut restored = vec![8];
    while pid >= 0x80 {
        restored.push(pid.to_le_bytes()[0] | 0x80);
        pid >>= 7;
    }
    restored.push(pid.to_le_bytes()[0]);
    let answer = [&[8, 2, 16, 1, 34, restored.len().to_le_bytes()[0]], &restored[..]].concat();
    rustix::net::send(&socket, &answer, rustix::net::SendFlags::empty())?;
    Ok(())
}

/// Reads a disk past the page cache for so many seconds, and says how many blocks that were.
fn read_direct(path: &str, seconds: f64) -> Verb {
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    // O_DIRECT wants memory at a multiple of the block size.
    let memory = vec![0u8; 16 << 10];
    let start = memory.as_ptr().align_offset(4096);
    let mut memory = memory;
    let block = &mut memory[start..start + (8 << 10)];
    let begin = std::time::Instant::now();
    let mut count = 0u64;
    while begin.elapsed().as_secs_f64() < seconds {
        file.read_exact_at(block, (count % 60_000) * 8192)?;
        count += 1;
    }
    println!("read={count}");
    Ok(())
}

/// The pids of others that are here now.
fn others() -> Vec<u32> {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.parse().ok()).filter(|pid| *pid != std::process::id()).collect()
}

/// Attacks for some seconds: writes to the program of every process that enters, by an fd that it
/// keeps until the file is no longer executed (ETXTBSY).
fn overwrite_exe(seconds: u64) {
    let end = std::time::Instant::now() + Duration::from_secs(seconds);
    let own = fs::read_link("/proc/self/exe").unwrap_or_default();
    let mut held = Vec::new();
    println!("attacking");
    let _ = io::stdout().flush();
    while std::time::Instant::now() < end {
        for pid in others() {
            let exe = format!("/proc/{pid}/exe");
            if fs::read_link(&exe).is_ok_and(|link| link == own) {
                continue;
            }
            if let Ok(file) = fs::File::open(&exe) {
                held.push(file);
                if held.len() == 1 {
                    println!("held");
                }
            }
        }
        for file in &held {
            let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
            if let Ok(mut file) = fs::OpenOptions::new().append(true).open(again)
                && file.write_all(b"overwritten").is_ok()
            {
                println!("WROTE");
            }
        }
        held.truncate(200);
    }
}

/// Attacks for some seconds: looks through the root, the working directory and the files of every
/// process that enters while it still runs the runtime's program.
fn spy(seconds: u64) {
    println!("spying");
    let _ = io::stdout().flush();
    let end = std::time::Instant::now() + Duration::from_secs(seconds);
    while std::time::Instant::now() < end {
        for pid in others() {
            let program = fs::read_link(format!("/proc/{pid}/exe"));
            if program.is_ok_and(|program| program.ends_with("payload")) {
                continue;
            }
            for place in ["root", "cwd"] {
                // The host has it, the container not.
                if fs::exists(format!("/proc/{pid}/{place}/usr/bin")).unwrap_or(false) {
                    println!("SEEN {place}");
                }
            }
            if fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|fds| fds.count() > 0)
                && fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| !exe.ends_with("payload"))
            {
                println!("SEEN fds");
            }
        }
    }
}

/// Becomes another program, under the parent's ptrace(2), which goes on when it sees the stop.
fn traced(argv: &[String]) -> Verb {
    use std::os::unix::process::CommandExt;
    nix::sys::ptrace::traceme()?;
    nix::sys::signal::raise(Signal::SIGSTOP)?;
    Err(Command::new(arg(argv, 0)?).args(&argv[1..]).exec())
}

/// Waits for any signal and names it.
fn signal_wait() -> Verb {
    // Blocked signals are kept, even for PID 1, whose unhandled ones the kernel drops.
    let set = SigSet::all();
    set.thread_block()?;
    println!("ready");
    io::stdout().flush()?;
    loop {
        let signal = set.wait()?;
        // A test may resize or continue the process on the way.
        if !matches!(signal, Signal::SIGCHLD | Signal::SIGWINCH | Signal::SIGCONT) {
            println!("{signal}");
            return Ok(());
        }
    }
}
