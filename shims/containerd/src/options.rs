//! What containerd's configuration says of the runtime.

use dhow_shim_common::wire::Message;

/// `containerd.runc.v1.Options`, as far as it means something here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The dhow binary; the one beside the shim when empty.
    pub binary: String,
    /// The folder below which each containerd namespace has its `--root`.
    pub root: String,
    pub systemd_cgroup: bool,
    pub no_pivot_root: bool,
    pub no_new_keyring: bool,
    /// The owner of the pipes that are a container's stdio.
    pub io_uid: u32,
    pub io_gid: u32,
    /// The cgroup that the shim itself joins.
    pub shim_cgroup: String,
    /// A checkpoint's image to start from, and where criu's logs go on the way.
    pub criu_image: String,
    pub criu_work: String,
}

const RUNC: &str = "containerd.runc.v1.Options";
const GENERIC: &str = "runtimeoptions.v1.Options";

impl Options {
    /// Reads a `google.protobuf.Any`: runc's options, or the generic ones, which CRI sends to
    /// runtimes that it does not know and ctr with `--runtime-config-path`. Of other types, nothing.
    pub fn read(any: &[u8]) -> Options {
        let Some(any) = Message::read(any) else { return Options::default() };
        let Some(value) = Message::read(any.bytes(2)) else { return Options::default() };
        let kind = any.text(1);
        if kind.ends_with(RUNC) {
            return Options::runc(&value);
        }
        if !kind.ends_with(GENERIC) {
            return Options::default();
        }
        // config_path is 2; config_body, 3, is the same text without a file.
        match (value.text(2), value.text(3)) {
            ("", body) => Options::toml(body),
            (path, _) => Options::toml(&std::fs::read_to_string(path).unwrap_or_default()),
        }
    }

    fn runc(value: &Message) -> Options {
        let id = |tag| u32::try_from(value.number(tag)).unwrap_or(0);
        Options {
            no_pivot_root: value.flag(1),
            no_new_keyring: value.flag(2),
            shim_cgroup: value.text(3).into(),
            io_uid: id(4),
            io_gid: id(5),
            binary: value.text(6).into(),
            root: value.text(7).into(),
            systemd_cgroup: value.flag(9),
            criu_image: value.text(10).into(),
            criu_work: value.text(11).into(),
        }
    }

    /// The `options` table of containerd's config.toml: `Key = value` in lines.
    fn toml(text: &str) -> Options {
        let mut options = Options::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = value.trim();
            let (word, is_true) = (value.trim_matches(['"', '\'']).to_owned(), value == "true");
            match key.trim() {
                "BinaryName" => options.binary = word,
                "Root" => options.root = word,
                "CriuImagePath" => options.criu_image = word,
                "CriuWorkPath" => options.criu_work = word,
                "ShimCgroup" => options.shim_cgroup = word,
                "SystemdCgroup" => options.systemd_cgroup = is_true,
                "NoPivotRoot" => options.no_pivot_root = is_true,
                "NoNewKeyring" => options.no_new_keyring = is_true,
                "IoUid" => options.io_uid = value.parse().unwrap_or(0),
                "IoGid" => options.io_gid = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_shim_common::wire::Writer;

    #[test]
    fn runcs_options_are_read() {
        let value =
            Writer::new().number(1, 1u32).number(4, 5u32).bytes(6, "/bin/x").bytes(7, "/r").number(9, 1u32);
        let any = Writer::new().bytes(1, RUNC).bytes(2, value.finish()).finish();
        let options = Options::read(&any);
        assert!(options.no_pivot_root && options.systemd_cgroup && !options.no_new_keyring);
        assert_eq!((options.io_uid, options.binary.as_str(), options.root.as_str()), (5, "/bin/x", "/r"));
    }

    #[test]
    fn cris_options_are_read() {
        let body = "BinaryName = \"/opt/dhow\"\nSystemdCgroup = true\nIoGid = 7\nUnknown = 1\n";
        let value = Writer::new().bytes(3, body);
        let any = Writer::new().bytes(1, format!("types/{GENERIC}")).bytes(2, value.finish()).finish();
        let expected =
            Options { binary: "/opt/dhow".into(), systemd_cgroup: true, io_gid: 7, ..Options::default() };
        assert_eq!(Options::read(&any), expected);
    }

    #[test]
    fn what_is_not_known_says_nothing() {
        assert_eq!(Options::read(b""), Options::default());
        assert_eq!(Options::read(&[0xff; 4]), Options::default());
    }
}
