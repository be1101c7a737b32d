//! `--mount type=…,source=…,target=…`, in Docker's words.

use super::options::{Options, named, scratch, wrong};
use super::volumes::{self, Wanted};
use crate::error::Result;
use serde_json::{Value, json};

/// What one `--mount` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked<'a> {
    kind: &'a str,
    source: Option<&'a str>,
    target: &'a str,
    readonly: bool,
    propagation: Option<&'a str>,
    data: Vec<String>,
    nocopy: bool,
}

/// Parses `KEY=VALUE,…`.
fn parse(text: &str) -> Result<Asked<'_>> {
    let refuse = |cause: String| wrong("mount", text, cause);
    let mut asked = Asked { kind: "volume", ..Asked::default() };
    for word in text.split(',') {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match (key, value) {
            ("type", kind @ ("bind" | "volume" | "tmpfs")) => asked.kind = kind,
            ("source" | "src", source) => asked.source = Some(source).filter(|source| !source.is_empty()),
            ("target" | "dst" | "destination", target) => asked.target = target,
            ("readonly" | "ro", "" | "true" | "1") => asked.readonly = true,
            ("readonly" | "ro", "false" | "0") => asked.readonly = false,
            (
                "bind-propagation",
                word @ ("private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared"),
            ) => asked.propagation = Some(word),
            ("volume-nocopy", "" | "true" | "1") => asked.nocopy = true,
            ("volume-nocopy", "false" | "0") => asked.nocopy = false,
            ("tmpfs-size", size) if !size.is_empty() => asked.data.push(format!("size={size}")),
            ("tmpfs-mode", mode) if !mode.is_empty() => asked.data.push(format!("mode={mode}")),
            ("type" | "readonly" | "ro" | "bind-propagation", value) => {
                return Err(refuse(format!("{key} cannot be {value:?}")));
            }
            _ => return Err(refuse(format!("there is no {key:?}"))),
        }
    }
    match asked.target.starts_with('/') {
        true => Ok(asked),
        false => Err(refuse("it needs target=PLACE, an absolute path in the container".into())),
    }
}

/// The place of a volume of the container's own, if that is what is asked for.
pub(super) fn scratch_place(text: &str) -> Option<String> {
    let asked = parse(text).ok()?;
    (asked.kind == "volume" && asked.source.is_none()).then(|| asked.target.to_owned())
}

/// The named volume that is asked for, if it is one.
///
/// # Errors
/// For what is no mount.
pub(super) fn named_volume(text: &str) -> Result<Option<Wanted>> {
    let asked = parse(text)?;
    let name = asked.source.filter(|name| asked.kind == "volume" && volumes::is_name(name));
    Ok(name.map(|name| Wanted { name: name.to_owned(), place: asked.target.to_owned(), fill: !asked.nocopy }))
}

/// The mount of config.json.
///
/// # Errors
/// For what is no such mount, and a source that is not there.
pub(super) fn mount(text: &str, options: &Options) -> Result<Value> {
    let refuse = |cause: &str| wrong("mount", text, cause);
    let asked = parse(text)?;
    let own = |of: &str, given: bool| match given {
        true => Err(refuse(&format!("{of} does not go with type={}", asked.kind))),
        false => Ok(()),
    };
    if asked.kind != "tmpfs" {
        own("tmpfs-size or tmpfs-mode", !asked.data.is_empty())?;
    }
    if asked.kind != "volume" {
        own("volume-nocopy", asked.nocopy)?;
    }
    if asked.kind != "bind" {
        own("bind-propagation", asked.propagation.is_some())?;
    }
    let mut mount = match (asked.kind, asked.source) {
        ("bind", Some(source)) => {
            if !source.starts_with('/') || !std::path::Path::new(source).exists() {
                return Err(refuse("the source must be an absolute path of the host that is there"));
            }
            json!({"destination": asked.target, "type": "bind", "source": source, "options": ["rbind"]})
        }
        ("bind", None) => return Err(refuse("it needs source=PATH")),
        ("tmpfs", None) => json!({"destination": asked.target, "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "nodev", "noexec"]}),
        ("tmpfs", Some(_)) => return Err(refuse("a tmpfs has no source")),
        (_, Some(name)) if volumes::is_name(name) => json!({"destination": asked.target, "type": "bind",
            "source": named(name, options)?, "options": ["rbind"]}),
        (_, Some(_)) => {
            return Err(
                refuse("the source is no volume's name").hint("type=bind takes a directory of the host")
            );
        }
        (_, None) => {
            scratch(asked.target, options).ok_or_else(|| refuse("the target is no place for one"))?
        }
    };
    if let Some(words) = mount["options"].as_array_mut() {
        words.extend(asked.data.iter().map(|word| json!(word)));
        words.extend(asked.propagation.map(|word| json!(word)));
        words.extend(asked.readonly.then(|| json!("ro")));
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_as_docker_writes_them() {
        let of = |text: &str| mount(text, &Options::default());
        let bind = of("type=bind,src=/tmp,dst=/x,readonly,bind-propagation=rslave").unwrap();
        assert_eq!(bind["options"], json!(["rbind", "rslave", "ro"]));
        assert_eq!((&bind["source"], &bind["destination"]), (&json!("/tmp"), &json!("/x")));
        let tmpfs = of("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770").unwrap();
        assert_eq!(tmpfs["options"], json!(["nosuid", "nodev", "noexec", "size=1m", "mode=1770"]));
        assert_eq!(of("target=/v").unwrap()["options"][2], "tmpcopyup");
        assert_eq!(scratch_place("type=volume,dst=/v").as_deref(), Some("/v"));
        assert_eq!(scratch_place("type=bind,src=/tmp,dst=/v"), None);
        for text in [
            "",
            "dst=x",
            "type=bind,dst=/x",
            "type=bind,src=/no/such/place,dst=/x",
            "type=bind,src=tmp,dst=/x",
            "type=volume,src=name,dst=/x",
            "type=tmpfs,src=/x,dst=/x",
            "type=bind,src=/tmp,dst=/x,tmpfs-size=1m",
            "type=npipe,dst=/x",
            "dst=/x,nonsense",
            "dst=/x,ro=maybe",
        ] {
            assert!(of(text).is_err(), "{text}");
        }
    }
}
