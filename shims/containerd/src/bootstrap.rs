//! `start`, `delete` and `-info`: how containerd gets to a shim, and cleans up after one.

use crate::options::Options;
use crate::runtime::{Config, Runtime};
use crate::shim::{Home, Shim};
use crate::{mounts, sandbox, stdio};
use dhow_shim_common::sys;
use dhow_shim_common::wire::{Message, Writer};
use rustix::fs::Mode;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, io};

/// The words that containerd starts a shim with.
#[derive(Debug, Default)]
pub struct Words {
    pub namespace: String,
    pub address: String,
    pub id: String,
    pub bundle: String,
    pub debug: bool,
    pub info: bool,
    pub version: bool,
    pub action: String,
}

/// In which form containerd wants to hear where the shim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `unix://PATH`: containerd up to 1.6.
    Plain,
    /// JSON, with the version of the task service: 1.7 to 2.2.
    Json(u32),
    /// A protobuf message: 2.3 and newer.
    Protobuf,
}

/// What `start` is told, in whatever form.
#[derive(Debug)]
struct Asked {
    form: Form,
    ttrpc: String,
    options: Options,
}

impl Asked {
    fn read(words: &Words, input: &[u8]) -> Asked {
        let variable = |name| env::var(name).unwrap_or_default();
        if let Some(message) = Message::read(input) {
            // A legacy Any has its type where BootstrapParams has the id.
            if message.text(1) == words.id && message.text(2) == words.namespace {
                let extensions = message.all(8).filter_map(Message::read);
                let options = extensions.map(|one| Options::read(one.bytes(1)));
                let options = options.into_iter().find(|one| *one != Options::default()).unwrap_or_default();
                return Asked { form: Form::Protobuf, ttrpc: message.text(5).into(), options };
            }
        }
        let form = match variable("MAX_SHIM_VERSION").parse::<u32>() {
            Ok(most) => Form::Json(most.clamp(2, 3)),
            Err(_) => Form::Plain,
        };
        Asked { form, ttrpc: variable("TTRPC_ADDRESS"), options: Options::read(input) }
    }

    fn answer(&self, socket: &Path) -> Vec<u8> {
        let address = format!("unix://{}", socket.display());
        match self.form {
            Form::Plain => address.into_bytes(),
            Form::Json(version) => {
                serde_json::json!({ "version": version, "address": address, "protocol": "ttrpc" })
                    .to_string()
                    .into_bytes()
            }
            Form::Protobuf => Writer::new().number(1, 3u32).bytes(2, address).bytes(3, "ttrpc").finish(),
        }
    }
}

/// The folder of the sockets: others may pass through it to what they know, and list nothing.
fn socket_folder() -> PathBuf {
    match (rustix::process::geteuid().is_root(), env::var_os("XDG_RUNTIME_DIR")) {
        (false, Some(folder)) => PathBuf::from(folder).join("dhow-shim"),
        _ => PathBuf::from("/run/dhow-shim"),
    }
}

fn make_folder(folder: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o711).create(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        other => other?,
    }
    // Neither the umask nor whoever was first decides.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o711))
}

/// The socket of a pod: the same for all its containers, and for no other containerd.
fn socket_of(folder: &Path, words: &Words, group: &str) -> PathBuf {
    let part = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, &words.address, &words.namespace, group).hash(&mut hasher);
        hasher.finish()
    };
    folder.join(format!("{:016x}{:016x}", part(0), part(1)))
}

/// Whether a shim listens. One that was killed still takes connections while the kernel closes its files;
/// by then it has no memory, and no command line.
fn is_alive(socket: &Path) -> bool {
    let Ok(stream) = UnixStream::connect(socket) else { return false };
    let Ok(peer) = rustix::net::sockopt::socket_peercred(&stream) else { return true };
    let line = fs::read(format!("/proc/{}/cmdline", peer.pid.as_raw_nonzero()));
    line.map_or(true, |line| !line.is_empty())
}

/// Binds the socket, or finds that a shim is behind it already.
fn listen(socket: &Path) -> io::Result<Option<UnixListener>> {
    for _ in 0..8 {
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(socket);
        rustix::process::umask(before);
        match bound {
            Ok(listener) => return Ok(Some(listener)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                if is_alive(socket) {
                    return Ok(None);
                }
                let _ = fs::remove_file(socket);
            }
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::AddrInUse.into())
}

/// The dhow binary beside the shim, or the one in PATH.
fn own_binary() -> String {
    let beside = env::current_exe().ok().and_then(|own| Some(own.parent()?.join("dhow")));
    beside.filter(|path| path.exists()).map_or("dhow".to_owned(), |path| path.display().to_string())
}

/// `start`: finds the pod's shim or becomes it, and says where it is.
///
/// # Errors
/// What could not be done.
pub fn start(words: &Words) -> Result<(), String> {
    let bundle = env::current_dir().map_err(|error| format!("where am I: {error}"))?;
    let mut input = Vec::new();
    let _ = io::stdin().lock().take(4 << 20).read_to_end(&mut input);
    let asked = Asked::read(words, &input);
    let group = Config::read(&bundle).group().unwrap_or_else(|| words.id.clone());
    let folder = socket_folder();
    make_folder(&folder).map_err(|error| format!("make {}: {error}", folder.display()))?;
    let socket = socket_of(&folder, words, &group);
    let listener = listen(&socket).map_err(|error| format!("listen on {}: {error}", socket.display()))?;
    if let Some(listener) = listener
        && become_shim(&listener)?
    {
        stay(words, &asked, &bundle, &socket, listener);
        return Ok(());
    }
    let address = format!("unix://{}", socket.display());
    fs::write(bundle.join("address"), address).map_err(|error| format!("write address: {error}"))?;
    print(&asked.answer(&socket))
}

/// Forks: whether this is the shim. The socket names whoever has called listen(2) last as its owner, by
/// which others tell whether the shim is alive; nobody hears of it before it is the shim.
fn become_shim(listener: &UnixListener) -> Result<bool, String> {
    let says = |what: &str, errno: i32| format!("{what}: {}", io::Error::from_raw_os_error(errno));
    let (is_ready, ready) = sys::pipe().map_err(|errno| says("make a pipe", errno))?;
    if sys::split().map_err(|errno| says("fork", errno))? {
        rustix::net::listen(listener, 4096).map_err(|errno| says("listen", errno.raw_os_error()))?;
        return Ok(true);
    }
    drop(ready);
    sys::poll([is_ready.as_raw_fd()], -1);
    Ok(false)
}

fn print(bytes: &[u8]) -> Result<(), String> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| format!("write the answer: {error}"))
}

/// The life of a shim.
fn stay(words: &Words, asked: &Asked, bundle: &Path, socket: &Path, listener: UnixListener) {
    let binary = own_binary();
    sys::stay_behind();
    if let Ok(null) = sys::null() {
        (0..3).for_each(|fd| sys::replace(&null, fd));
    }
    be_killed_before_containerd();
    if !asked.options.shim_cgroup.is_empty() {
        crate::cgroup::join(&asked.options.shim_cgroup);
    }
    let _ = listener.set_nonblocking(true);
    let home = Home {
        namespace: words.namespace.clone(),
        socket: socket.to_owned(),
        binary,
        log: stdio::open_log(bundle),
        debug: words.debug,
        options: asked.options.clone(),
    };
    match sys::signal_file(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT]) {
        Ok(signals) => Shim::new(home, listener, signals, &asked.ttrpc).stay(),
        Err(_) => drop(fs::remove_file(socket)),
    }
}

/// When memory runs out a shim goes rather than containerd, whose child it is at this moment.
fn be_killed_before_containerd() {
    let score = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let score = score.trim().parse::<i32>().unwrap_or(0);
    let _ = fs::write("/proc/self/oom_score_adj", (score + 1).min(1000).to_string());
}

/// `delete`: cleans up what a shim that is gone has left, and says how the container ended. It is
/// called after a normal end as well, when nothing is left.
///
/// # Errors
/// What could not be done.
pub fn delete(words: &Words) -> Result<(), String> {
    let bundle = match words.bundle.as_str() {
        "" => env::current_dir().map_err(|error| format!("where am I: {error}"))?,
        bundle => PathBuf::from(bundle),
    };
    let pid = fs::read_to_string(bundle.join("init.pid")).unwrap_or_default();
    let pid = pid.trim().parse::<u32>().unwrap_or(0);
    // One that was killed before it had noted its socket is known by its names.
    let socket = match fs::read_to_string(bundle.join("address")) {
        Ok(address) => PathBuf::from(address.trim_start_matches("unix://")),
        Err(_) => {
            let group = Config::read(&bundle).group().unwrap_or_else(|| words.id.clone());
            socket_of(&socket_folder(), words, &group)
        }
    };
    if let Some(runtime) = Runtime::noted(&bundle) {
        if !is_alive(&socket) {
            end_work(words, &bundle);
        }
        runtime.delete(&words.id)?;
    }
    mounts::unmount_all(&bundle.join("rootfs"));
    if !is_alive(&socket) {
        let _ = fs::remove_file(&socket);
        sandbox::clean(&bundle, &socket);
    }
    // 128 + SIGKILL: what is still there now is killed.
    print(&Writer::new().number(1, pid).number(2, 137u32).time(3, sys::now()).finish())
}

/// Ends a shim that nobody can reach, and what it has made dhow begin. A killed process closes its files
/// before its children hear of its death: until they do dhow goes on, and would make mount points in a
/// rootfs that is not mounted any more.
fn end_work(words: &Words, bundle: &Path) {
    let bundle = bundle.as_os_str().as_encoded_bytes();
    let pairs = [("-namespace", &words.namespace), ("-address", &words.address), ("-id", &words.id)];
    let is_work = |line: &[u8]| {
        let line: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let has = |name: &str, value: &[u8]| line.windows(2).any(|two| two == [name.as_bytes(), value]);
        let is_shim = || pairs.iter().all(|(name, value)| has(name, value.as_bytes()));
        has("--bundle", bundle) || (is_shim() && line.contains(&&b"start"[..]))
    };
    for _ in 0..1000 {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let is_its = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| is_work(&line));
        let pids: Vec<i32> =
            entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_its).collect();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// `-info`: `containerd.types.RuntimeInfo`, with the features of dhow.
///
/// # Errors
/// What could not be done.
pub fn info() -> Result<(), String> {
    const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
    let mut input = Vec::new();
    let _ = io::stdin().lock().take(4 << 20).read_to_end(&mut input);
    let options = Options::read(&input);
    let binary = if options.binary.is_empty() { own_binary() } else { options.binary };
    let said = std::process::Command::new(&binary)
        .arg("features")
        .output()
        .map_err(|error| format!("run {binary} features: {error}"))?;
    let mut info = Writer::new()
        .bytes(1, "io.containerd.dhow.v2")
        .message(2, &Writer::new().bytes(1, env!("CARGO_PKG_VERSION")));
    if !input.is_empty() {
        info = info.message(3, &Writer::raw(input));
    }
    print(&info.any(4, FEATURES, said.stdout).finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> Words {
        Words { id: "c1".into(), namespace: "default".into(), ..Words::default() }
    }

    #[test]
    fn bootstrap_parameters_are_answered_in_their_form() {
        let options = Writer::new()
            .bytes(1, "containerd.runc.v1.Options")
            .bytes(2, Writer::new().bytes(7, "/r").finish());
        let input = Writer::new()
            .bytes(1, "c1")
            .bytes(2, "default")
            .bytes(5, "/run/containerd.sock.ttrpc")
            .message(8, &Writer::new().message(1, &options))
            .finish();
        let asked = Asked::read(&words(), &input);
        assert_eq!((asked.form, asked.ttrpc.as_str()), (Form::Protobuf, "/run/containerd.sock.ttrpc"));
        assert_eq!(asked.options.root, "/r");
        let answer = asked.answer(Path::new("/run/s"));
        let answer = Message::read(&answer).unwrap();
        assert_eq!((answer.number(1), answer.text(2), answer.text(3)), (3, "unix:///run/s", "ttrpc"));
    }

    #[test]
    fn options_alone_are_the_old_form() {
        let input = Writer::new()
            .bytes(1, "containerd.runc.v1.Options")
            .bytes(2, Writer::new().bytes(7, "/r").finish());
        let asked = Asked::read(&words(), &input.finish());
        assert_ne!(asked.form, Form::Protobuf);
        assert_eq!(asked.options.root, "/r");
        let asked = Asked { form: Form::Json(3), ..asked };
        let json: serde_json::Value = serde_json::from_slice(&asked.answer(Path::new("/run/s"))).unwrap();
        assert_eq!(json, serde_json::json!({"version": 3, "address": "unix:///run/s", "protocol": "ttrpc"}));
    }

    #[test]
    fn a_pod_has_one_socket_and_no_other_has_it() {
        let folder = Path::new("/run/x");
        let one = socket_of(folder, &words(), "pod");
        assert_eq!(one, socket_of(folder, &words(), "pod"));
        assert_ne!(one, socket_of(folder, &words(), "pod2"));
        let other = Words { namespace: "moby".into(), ..words() };
        assert_ne!(one, socket_of(folder, &other, "pod"));
    }
}
