//! Names of images, as Docker reads them: `debian` is `docker.io/library/debian:latest`.

use super::digest::Digest;
use crate::error::{Class, Error, Result};
use std::fmt;

/// A full name: `HOST/PATH:TAG` or `HOST/PATH@DIGEST`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// The registry and the path below it.
    pub repository: String,
    /// The tag.
    pub tag: String,
    /// The digest, which then says more than the tag.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Reads a name as a person writes it.
    ///
    /// # Errors
    /// [`Class::Usage`] for what is no name.
    pub fn parse(text: &str) -> Result<Reference> {
        let wrong = |cause: &str| {
            Error::new(Class::Usage, "no name of an image").on(format!("{text:?}")).because(cause)
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (rest, "latest"),
        };
        let (host, path) = match path.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
            _ => ("docker.io", path.to_owned()),
        };
        let host = if host == "index.docker.io" { "docker.io" } else { host };
        let path = if host == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path };
        let tag_char = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if tag.is_empty() || tag.len() > 128 || tag.starts_with(['.', '-']) || !tag.chars().all(tag_char) {
            return Err(wrong("its tag is no tag"));
        }
        if !is_host(host) || !path.split('/').all(is_component) {
            return Err(wrong(
                "a name has lower-case letters, digits, and one `.`, `_`, `__` or `-` between them",
            ));
        }
        let repository = format!("{host}/{path}");
        match repository.len() {
            0..=255 => Ok(Reference { repository, tag: tag.to_owned(), digest }),
            _ => Err(wrong("it is longer than 255 bytes")),
        }
    }

    /// The registry that it is of.
    pub fn registry(&self) -> &str {
        self.repository.split_once('/').map_or(self.repository.as_str(), |(registry, _)| registry)
    }

    /// The name that an image gets which was asked for by this one: a digest is no tag, and must
    /// not take the place of one.
    #[must_use]
    pub fn kept_as(&self) -> Reference {
        let tag = self.digest.map_or_else(|| self.tag.clone(), |digest| format!("sha256-{}", digest.hex()));
        Reference { repository: self.repository.clone(), tag, digest: None }
    }

    /// As people write it: without what Docker adds.
    pub fn familiar(&self) -> String {
        let name = self.repository.strip_prefix("docker.io/").unwrap_or(&self.repository);
        format!("{}:{}", name.strip_prefix("library/").unwrap_or(name), self.tag)
    }
}

/// Docker's grammar of a name's parts: letters and digits, and between them a dot, one or two underscores,
/// or dashes. So no part is `..`, wherever a name becomes a path.
fn is_component(part: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator = |text: &str| matches!(text, "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    part.starts_with(plain) && part.ends_with(plain) && part.split(plain).all(is_separator)
}

/// A registry: a domain's name or an address, and maybe a port.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !host.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let is_label = |label: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.chars().all(inner)
    };
    let is_address = |text: &str| text.parse::<std::net::Ipv6Addr>().is_ok();
    let is_name = match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => is_address(address),
        None => name.split('.').all(is_label),
    };
    is_name && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dockers() {
        for (short, full) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("me/app", "docker.io/me/app:latest"),
            ("localhost/app:1", "localhost/app:1"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("me/a__b.c---d", "docker.io/me/a__b.c---d:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ] {
            assert_eq!(Reference::parse(short).unwrap().to_string(), full);
        }
        assert_eq!(Reference::parse("docker.io/library/a:1").unwrap().familiar(), "a:1");
        assert_eq!(Reference::parse("localhost:5000/a").unwrap().registry(), "localhost:5000");
        let digest = Digest::of(b"");
        let kept = Reference::parse(&format!("a@{digest}")).unwrap().kept_as().to_string();
        assert_eq!(kept, format!("docker.io/library/a:sha256-{}", digest.hex()));
        assert!(Reference::parse(&kept).is_ok());
        for wrong in ["", "A", "a:", "a/../b", "a//b", "/a", "a:b:c/d", "x@sha256:12", "-a", "a:../x"] {
            assert!(Reference::parse(wrong).is_err(), "{wrong}");
        }
        for wrong in
            ["a..b", "a.-b", "a___b", "../a", "a..b/c", "-a.b/c", "[..]/a", "a.b:x/c", "a.b:/c", ":/c"]
        {
            assert!(Reference::parse(wrong).is_err(), "{wrong}");
        }
    }
}
