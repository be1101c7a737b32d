//! SHA-256 digests, and reading while hashing.

use super::refused;
use crate::error::Result;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::io::Read;

/// A SHA-256 digest. What is not 64 lower-case hex digits never becomes one, so its text can
/// stand in a path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// Parses `sha256:HEX`.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn parse(text: &str) -> Result<Digest> {
        let Some((algorithm, hex)) = text.split_once(':') else {
            return Err(refused(format!("{text:?} is no digest")));
        };
        if algorithm != "sha256" {
            return Err(refused(format!("the digest {text:?} is of another kind than sha256"))
                .hint("an image with sha512 has to be made again: `skopeo copy` does, with sha256"));
        }
        Digest::from_hex(hex).ok_or_else(|| refused(format!("the digest {text:?} is not 64 hex digits")))
    }

    /// Parses 64 lower-case hex digits.
    pub fn from_hex(hex: &str) -> Option<Digest> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let bytes: &[u8; 64] = hex.as_bytes().try_into().ok()?;
        let mut value = [0; 32];
        for (place, pair) in value.iter_mut().zip(bytes.chunks_exact(2)) {
            *place = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Digest(value))
    }

    /// Its 64 hex digits.
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Its first 16 bytes, where a UUID is asked for.
    pub fn first_half(&self) -> [u8; 16] {
        std::array::from_fn(|at| self.0[at])
    }

    /// The chain id of a layer on top of a chain (image-spec config.md, "Layer ChainID").
    #[must_use]
    pub fn chained(below: Option<Digest>, diff: Digest) -> Digest {
        match below {
            Some(below) => Digest::of(format!("{below} {diff}").as_bytes()),
            None => diff,
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Digest, String> {
        Digest::parse(&text).map_err(|error| error.cause.unwrap_or_default())
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

/// A digest in the making.
#[derive(Debug, Default)]
pub struct Hasher {
    state: Sha256,
    /// Bytes so far.
    pub count: u64,
}

impl Hasher {
    /// Takes some bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.count += bytes.len() as u64;
    }

    /// The digest of all of them.
    pub fn finish(self) -> Digest {
        Digest(self.state.finalize().into())
    }
}

/// The digest and size of all that a reader has.
///
/// # Errors
/// read(2)'s.
pub fn digest_of(mut from: impl Read) -> std::io::Result<(Digest, u64)> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => hasher.update(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let count = hasher.count;
    Ok((hasher.finish(), count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sha256_in_lower_case_hex() {
        let empty = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(empty.to_string(), text);
        assert_eq!(Digest::parse(text).unwrap(), empty);
        for wrong in ["", "sha256", "sha256:", "sha256:../../etc/passwd", "md5:00", &text.to_uppercase()] {
            assert!(Digest::parse(wrong).is_err(), "{wrong}");
        }
    }
}
