//! Mount options: the words of mount(8) and of the runtime specification, given meaning.

use crate::sys::mount::{Attributes, Change, Propagation};

/// What one list of options asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Attributes of the one mount.
    pub change: Change,
    /// Attributes of the mount and all below it: the words with an `r` before them.
    pub recursive: Change,
    /// Propagation changes, in order, with whether they go down the tree.
    pub propagation: Vec<(Propagation, bool)>,
    /// A bind mount; recursive for `rbind`.
    pub bind: Option<Bind>,
    /// Copies what the rootfs has at the place into the new tmpfs.
    pub copy_up: bool,
    /// The rest, for the filesystem: `key` or `key=value`.
    pub data: Vec<(String, Option<String>)>,
    /// Maps the owners of the files; true for the whole tree.
    pub idmap: Option<bool>,
    /// `idmap=uids=0-1000-1;gids=…`, as crun reads it: the text behind the first `=`.
    pub mappings: Option<String>,
    /// What symlinks at the ends of a bind mount mean.
    pub symlinks: Symlinks,
}

/// What symlinks at the ends of a bind mount mean: options of crun's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Symlinks {
    /// `copy-symlink`: a source that is a symlink is made again in the container, not followed.
    pub copy: bool,
    /// `src-nofollow`: a source that is a symlink is mounted itself.
    pub source_stays: bool,
    /// `dest-nofollow`: a symlink at the destination is what the mount lies on.
    pub target_stays: bool,
}

/// Which part of a tree a bind mount shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bind {
    /// One mount.
    Single,
    /// The mounts below it too.
    Recursive,
}

/// What one word does to the attributes: set, or clear.
struct Attribute {
    word: &'static str,
    set: Attributes,
    clear: Attributes,
    /// It only takes back what an earlier word of the list has set: mount(2) leaves the times of
    /// access alone when no flag is about them.
    takes_back: bool,
}

const fn sets(word: &'static str, set: Attributes) -> Attribute {
    Attribute { word, set, clear: Attributes::empty(), takes_back: false }
}

const fn clears(word: &'static str, clear: Attributes) -> Attribute {
    Attribute { word, set: Attributes::empty(), clear, takes_back: false }
}

const fn takes_back(word: &'static str, clear: Attributes) -> Attribute {
    Attribute { word, set: Attributes::empty(), clear, takes_back: true }
}

/// Words that are attributes of a mount. Each also exists with an `r` before it, for the whole
/// tree (runtime-spec, "Linux mount options").
const ATTRIBUTES: &[Attribute] = &[
    sets("ro", Attributes::MOUNT_ATTR_RDONLY),
    clears("rw", Attributes::MOUNT_ATTR_RDONLY),
    sets("nosuid", Attributes::MOUNT_ATTR_NOSUID),
    clears("suid", Attributes::MOUNT_ATTR_NOSUID),
    sets("nodev", Attributes::MOUNT_ATTR_NODEV),
    clears("dev", Attributes::MOUNT_ATTR_NODEV),
    sets("noexec", Attributes::MOUNT_ATTR_NOEXEC),
    clears("exec", Attributes::MOUNT_ATTR_NOEXEC),
    sets("nodiratime", Attributes::MOUNT_ATTR_NODIRATIME),
    takes_back("diratime", Attributes::MOUNT_ATTR_NODIRATIME),
    sets("nosymfollow", Attributes::MOUNT_ATTR_NOSYMFOLLOW),
    clears("symfollow", Attributes::MOUNT_ATTR_NOSYMFOLLOW),
    sets("noatime", Attributes::MOUNT_ATTR_NOATIME),
    takes_back("atime", Attributes::MOUNT_ATTR__ATIME),
    sets("strictatime", Attributes::MOUNT_ATTR_STRICTATIME),
    takes_back("nostrictatime", Attributes::MOUNT_ATTR__ATIME),
    // relatime is 0 in the atime field, so setting it is clearing the field.
    clears("relatime", Attributes::MOUNT_ATTR__ATIME),
    takes_back("norelatime", Attributes::MOUNT_ATTR__ATIME),
];

/// Every word that is an attribute or a propagation, for `dhow features`.
pub fn known_words() -> Vec<String> {
    let attributes = ATTRIBUTES.iter().flat_map(|a| [a.word.to_owned(), format!("r{}", a.word)]);
    let propagations = ["shared", "slave", "private", "unbindable"];
    let propagations = propagations.iter().flat_map(|&word| [word.to_owned(), format!("r{word}")]);
    let others = [
        "bind",
        "rbind",
        "defaults",
        "async",
        "sync",
        "dirsync",
        "lazytime",
        "nolazytime",
        "mand",
        "nomand",
        "silent",
        "loud",
        "iversion",
        "noiversion",
        "acl",
        "noacl",
        "tmpcopyup",
        "idmap",
        "ridmap",
        "remount",
        "copy-symlink",
        "src-nofollow",
        "dest-nofollow",
    ];
    let mut words: Vec<String> = attributes.chain(propagations).chain(others.map(str::to_owned)).collect();
    words.sort_unstable();
    words.dedup();
    words
}

fn apply(change: &mut Change, attribute: &Attribute) {
    // The last word about a thing wins.
    change.set = change.set.difference(attribute.clear) | attribute.set;
    change.clear = change.clear.difference(attribute.set) | attribute.clear;
    if attribute.set.intersects(Attributes::MOUNT_ATTR__ATIME) {
        change.set = change.set.difference(Attributes::MOUNT_ATTR__ATIME) | attribute.set;
    }
}

fn propagation(word: &str) -> Option<Propagation> {
    match word {
        "shared" => Some(Propagation::Shared),
        "slave" => Some(Propagation::Slave),
        "private" => Some(Propagation::Private),
        "unbindable" => Some(Propagation::Unbindable),
        _ => None,
    }
}

/// The propagation of a word such as `rslave`, and whether it is recursive.
pub fn parse_propagation(word: &str) -> Option<(Propagation, bool)> {
    propagation(word)
        .map(|found| (found, false))
        .or_else(|| word.strip_prefix('r').and_then(propagation).map(|found| (found, true)))
}

impl Options {
    /// Gives meaning to a list of options. What is no word of mount(8) is the filesystem's.
    pub fn parse(words: &[String]) -> Options {
        let mut options = Options {
            change: Change::none(),
            recursive: Change::none(),
            propagation: Vec::new(),
            bind: None,
            copy_up: false,
            data: Vec::new(),
            idmap: None,
            mappings: None,
            symlinks: Symlinks::default(),
        };
        for word in words {
            options.add(word);
        }
        options
    }

    fn add(&mut self, word: &str) {
        let attribute = |name: &str| ATTRIBUTES.iter().find(|attribute| attribute.word == name);
        if let Some(attribute) = attribute(word) {
            if attribute.takes_back {
                self.change.set = self.change.set.difference(attribute.clear);
                return;
            }
            return apply(&mut self.change, attribute);
        }
        if let Some(attribute) = word.strip_prefix('r').and_then(attribute) {
            return apply(&mut self.recursive, attribute);
        }
        if let Some(found) = parse_propagation(word) {
            return self.propagation.push(found);
        }
        match word {
            "bind" => self.bind = self.bind.or(Some(Bind::Single)),
            "rbind" => self.bind = Some(Bind::Recursive),
            "tmpcopyup" => self.copy_up = true,
            // Nothing to do: the defaults, what a new mount is anyway, and what the kernel ignores.
            "" | "defaults" | "async" | "nomand" | "loud" | "nolazytime" | "noiversion" | "acl" | "noacl"
            | "iversion" | "silent" | "remount" | "mand" => {}
            "idmap" => self.idmap = self.idmap.or(Some(false)),
            "ridmap" => self.idmap = Some(true),
            "copy-symlink" => self.symlinks.copy = true,
            "src-nofollow" => self.symlinks.source_stays = true,
            "dest-nofollow" => self.symlinks.target_stays = true,
            _ => match word.split_once('=') {
                Some((key @ ("idmap" | "ridmap"), value)) => {
                    self.idmap = Some(key == "ridmap");
                    self.mappings = Some(value.to_owned());
                }
                Some((key, value)) => self.data.push((key.to_owned(), Some(value.to_owned()))),
                None => self.data.push((word.to_owned(), None)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Options {
        Options::parse(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn attributes_data_and_propagation_are_told_apart() {
        let options = parse(&["nosuid", "ro", "mode=755", "size=64k", "rprivate", "newinstance"]);
        assert_eq!(options.change.set, Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_RDONLY);
        assert_eq!(options.propagation, [(Propagation::Private, true)]);
        assert_eq!(
            options.data,
            [
                ("mode".into(), Some("755".into())),
                ("size".into(), Some("64k".into())),
                ("newinstance".into(), None)
            ]
        );
    }

    #[test]
    fn the_last_word_wins() {
        let options = parse(&["ro", "rw"]);
        assert_eq!(options.change.set, Attributes::empty());
        assert_eq!(options.change.clear, Attributes::MOUNT_ATTR_RDONLY);
        let options = parse(&["noatime", "strictatime"]);
        assert_eq!(options.change.set, Attributes::MOUNT_ATTR_STRICTATIME);
        let options = parse(&["strictatime", "relatime"]);
        assert_eq!(options.change.set, Attributes::empty());
        assert!(parse(&["noatime", "atime", "norelatime", "diratime"]).change.is_none());
    }

    #[test]
    fn an_r_before_it_means_the_tree() {
        let options = parse(&["rbind", "rro", "rnosuid", "rslave"]);
        assert_eq!(options.bind, Some(Bind::Recursive));
        assert_eq!(options.recursive.set, Attributes::MOUNT_ATTR_RDONLY | Attributes::MOUNT_ATTR_NOSUID);
        assert!(options.change.is_none());
        // relatime, not "elatime" for the tree.
        assert_eq!(parse(&["relatime"]).change.clear, Attributes::MOUNT_ATTR__ATIME);
        assert_eq!(parse(&["rrelatime"]).recursive.clear, Attributes::MOUNT_ATTR__ATIME);
    }

    #[test]
    fn what_features_tells_is_true() {
        for word in known_words() {
            let options = parse(&[&word]);
            assert!(
                options.data.is_empty() || ["sync", "dirsync", "lazytime"].contains(&word.as_str()),
                "{word}"
            );
        }
    }
}
