//! A container's network by CNI plugins: programs that are told, on standard input, what network, and
//! by their environment, which container (CNI specification 1.0, "Execution Protocol").

use crate::error::{Class, Context as _, Error, Result};
use crate::image::container;
use crate::log;
use crate::state::{Record, Undo};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where networks are described when nobody says otherwise.
const CONFIGURATIONS: &str = "/etc/cni/net.d";

/// Where plugins are when `CNI_PATH` does not say: the specification's place, then Debian's and
/// Fedora's.
const PLUGINS: &str = "/opt/cni/bin:/usr/lib/cni:/usr/libexec/cni";

/// The interface's name in the container.
const INTERFACE: &str = "eth0";

/// The errors that plugins answer with for a network that has been taken apart already are none of
/// delete's business; this is how many of a plugin's own words are kept.
const MOST_WORDS: usize = 2000;

/// A network that a container is to be in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Network {
    /// The list of plugins, as its file says.
    list: Value,
    /// Where plugins are looked for, with colons in between.
    path: String,
    /// `[{hostPort, containerPort, protocol, hostIP}]`.
    ports: Vec<Value>,
}

/// What the journal keeps of a network.
#[derive(Debug, Serialize, Deserialize)]
struct Journal {
    network: Network,
    /// The container's name in the network.
    container: String,
    /// What adding it answered; null before.
    result: Value,
    /// Whether the container is in the network no more, or not yet: it is then what its next life joins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    apart: bool,
}

impl Journal {
    fn parse(text: &str, id: &str) -> Result<Journal> {
        serde_json::from_str(text).map_err(|error| {
            Error::new(Class::Corrupt, "read the state record")
                .on(format!("{id}: network"))
                .because(error.to_string())
        })
    }

    fn to_undo(&self) -> Result<Undo> {
        serde_json::value::to_raw_value(self)
            .map(Undo::Network)
            .map_err(|error| Error::new(Class::Internal, "write the state record").because(error.to_string()))
    }
}

/// A container that is in its network.
#[derive(Debug)]
pub struct Connected {
    container: String,
    result: Value,
}

impl Network {
    /// Finds a network by its name.
    ///
    /// # Errors
    /// [`Class::Config`] when there is none of that name, its file is wrong, one of its plugins is not
    /// there, or none of them can publish ports and some are asked for.
    pub fn find(name: &str, directory: Option<&Path>, publish: &[String]) -> Result<Network> {
        let from_environment = || std::env::var_os("DHOW_CNI_CONF").filter(|path| !path.is_empty());
        let directory = directory.map(Path::to_owned).or_else(|| from_environment().map(PathBuf::from));
        let directory = directory.unwrap_or_else(|| CONFIGURATIONS.into());
        let list = list_of(name, &directory)?;
        let path = std::env::var("CNI_PATH").ok().filter(|path| !path.is_empty());
        let ports = publish.iter().map(|text| port(text)).collect::<Result<Vec<_>>>()?;
        let network = Network { list, path: path.unwrap_or_else(|| PLUGINS.into()), ports };
        let mut publishes = false;
        for plugin in network.plugins() {
            network.program(plugin)?;
            publishes |= plugin["capabilities"]["portMappings"] == true;
        }
        if !network.ports.is_empty() && !publishes {
            return Err(Error::new(Class::Config, "publish a port")
                .on(format!("CNI network {name:?}"))
                .because("no plugin of it has the capability portMappings")
                .hint(
                    "add {\"type\": \"portmap\", \"capabilities\": {\"portMappings\": true}} to its plugins",
                ));
        }
        Ok(network)
    }

    fn plugins(&self) -> &[Value] {
        self.list["plugins"].as_array().map_or(&[], Vec::as_slice)
    }

    fn name(&self) -> &str {
        self.list["name"].as_str().unwrap_or_default()
    }

    /// The undo of a container that is about to be added.
    pub(super) fn undo(&self, id: &str) -> Result<Undo> {
        self.journal(id, Value::Null, false)
    }

    /// What tells a later create that the container is to join this network.
    pub(super) fn to_join(&self, id: &str) -> Result<Undo> {
        self.journal(id, Value::Null, true)
    }

    /// The network that a container is to join, apart from the rest of its journal.
    ///
    /// # Errors
    /// [`Class::Corrupt`].
    pub fn split(undo: Vec<Undo>, id: &str) -> Result<(Option<Network>, Vec<Undo>)> {
        let (networks, rest): (Vec<Undo>, Vec<Undo>) =
            undo.into_iter().partition(|undo| matches!(undo, Undo::Network(_)));
        let network = networks.iter().find_map(|undo| match undo {
            Undo::Network(text) => Some(Journal::parse(text.get(), id).map(|journal| journal.network)),
            _ => None,
        });
        Ok((network.transpose()?, rest))
    }

    fn journal(&self, id: &str, result: Value, apart: bool) -> Result<Undo> {
        Journal { network: self.clone(), container: id.to_owned(), result, apart }.to_undo()
    }

    /// Adds a container: each plugin in turn gets what the one before has answered.
    ///
    /// # Errors
    /// [`Class::System`] with the plugin's name and its own words. The container is in no network then.
    pub(super) fn add(&self, id: &str, pid: i32) -> Result<Connected> {
        let mut result = Value::Null;
        for plugin in self.plugins() {
            let call = Call { verb: "ADD", id, namespace: format!("/proc/{pid}/ns/net"), previous: &result };
            result = self.call(plugin, &call).inspect_err(|_| {
                let _ = self.delete(id, &Value::Null);
            })?;
        }
        Ok(Connected { container: id.to_owned(), result })
    }

    /// Takes a container away again, in the opposite order. Every plugin gets its turn.
    fn delete(&self, id: &str, result: &Value) -> Result<()> {
        let mut first = Ok(());
        for plugin in self.plugins().iter().rev() {
            // The network namespace has gone with the container's processes: the specification has
            // plugins take back all else.
            let call = Call { verb: "DEL", id, namespace: String::new(), previous: result };
            first = first.and(self.call(plugin, &call).map(drop));
        }
        first
    }

    fn program(&self, plugin: &Value) -> Result<PathBuf> {
        let kind = plugin["type"].as_str().unwrap_or_default();
        let missing = |cause: String| {
            Error::new(Class::Config, "find the CNI plugin")
                .on(format!("{kind:?} of the network {:?}", self.name()))
                .because(cause)
        };
        if kind.is_empty() || kind.contains('/') {
            return Err(missing("its type must be a program's name".into()));
        }
        let candidates = self.path.split(':').map(|directory| Path::new(directory).join(kind));
        candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| {
            missing(format!("it is not in {}", self.path))
                .hint("Debian's package is containernetworking-plugins; CNI_PATH names other directories")
        })
    }

    /// What a plugin is told: its own part, the network's name, and what this container needs of what
    /// the plugin can do.
    fn configuration(&self, plugin: &Value, previous: &Value) -> Value {
        let mut told = plugin.clone();
        told["cniVersion"] = self.list["cniVersion"].clone();
        told["name"] = self.list["name"].clone();
        if !previous.is_null() {
            told["prevResult"] = previous.clone();
        }
        if plugin["capabilities"]["portMappings"] == true && !self.ports.is_empty() {
            told["runtimeConfig"] = json!({"portMappings": self.ports});
        }
        told
    }

    fn call(&self, plugin: &Value, call: &Call<'_>) -> Result<Value> {
        let kind = plugin["type"].as_str().unwrap_or_default();
        let failed = |cause: String| {
            Error::new(Class::System, format!("CNI plugin {kind:?} failed at {}", call.verb))
                .on(format!("network {:?}, container {:?}", self.name(), call.id))
                .because(cause)
        };
        let io = |error: std::io::Error| failed(error.to_string());
        let mut child = Command::new(self.program(plugin)?)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name == "PATH"))
            .env("CNI_COMMAND", call.verb)
            .env("CNI_CONTAINERID", call.id)
            .env("CNI_NETNS", &call.namespace)
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_PATH", &self.path)
            .env("CNI_ARGS", "IgnoreUnknown=1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(io)?;
        let told = self.configuration(plugin, call.previous).to_string();
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read may still have something to say.
            let _ = stdin.write_all(told.as_bytes());
        }
        let output = child.wait_with_output().map_err(io)?;
        let answer: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        if !output.status.success() {
            return Err(failed(words(answer.as_ref(), &output.stdout, &output.stderr)));
        }
        match (call.verb, answer) {
            ("ADD", None) => Err(failed("its answer is no JSON".into())),
            (_, answer) => Ok(answer.unwrap_or_default()),
        }
    }
}

/// One call of a plugin.
struct Call<'a> {
    verb: &'a str,
    id: &'a str,
    namespace: String,
    previous: &'a Value,
}

/// Why a plugin failed: the specification's error object, or whatever it has said.
fn words(answer: Option<&Value>, stdout: &[u8], stderr: &[u8]) -> String {
    let text = answer.and_then(|error| {
        let details = error["details"].as_str().filter(|details| !details.is_empty());
        let message = error["msg"].as_str()?;
        Some(details.map_or_else(|| message.to_owned(), |details| format!("{message}: {details}")))
    });
    let said = || String::from_utf8_lossy(if stderr.is_empty() { stdout } else { stderr }).into_owned();
    let text: String = text.unwrap_or_else(said).split_whitespace().collect::<Vec<_>>().join(" ");
    match text.is_empty() {
        true => "it said nothing".into(),
        false => text.chars().filter(|c| !c.is_control()).take(MOST_WORDS).collect(),
    }
}

/// Takes a container from the network that its journal names.
///
/// # Errors
/// When a plugin fails; [`Class::Corrupt`].
pub(super) fn remove(text: &str, id: &str) -> Result<()> {
    let journal = Journal::parse(text, id)?;
    match journal.apart {
        true => Ok(()),
        false => journal.network.delete(&journal.container, &journal.result),
    }
}

/// What of a journal outlives a life of its container: its directory, and the networks that the next
/// life is to join. Those must have been left.
///
/// # Errors
/// [`Class::Corrupt`].
pub(super) fn outlives(record: &mut Record) -> Result<()> {
    let id = &record.id;
    let kept = record.undo.drain(..).filter_map(|undo| match undo {
        Undo::Network(text) => {
            let apart = |journal| Journal { result: Value::Null, apart: true, ..journal };
            Some(Journal::parse(text.get(), id).map(apart).and_then(|journal| journal.to_undo()))
        }
        Undo::Directory(_) => Some(Ok(undo)),
        _ => None,
    });
    record.undo = kept.collect::<Result<_>>()?;
    Ok(())
}

/// Takes a container whose life is over from its networks; whether there was one. What a plugin says
/// against it is a warning: `delete`, or the next life, tries again.
///
/// # Errors
/// [`Class::Corrupt`].
pub(super) fn leave(record: &mut Record) -> Result<bool> {
    let mut left = false;
    for undo in &mut record.undo {
        let Undo::Network(text) = undo else { continue };
        let mut journal = Journal::parse(text.get(), &record.id)?;
        if journal.apart {
            continue;
        }
        match journal.network.delete(&journal.container, &journal.result) {
            Ok(()) => {
                (journal.result, journal.apart, left) = (Value::Null, true, true);
                *undo = journal.to_undo()?;
            }
            Err(error) => log::warn(&error.to_string()),
        }
    }
    Ok(left)
}

impl Connected {
    /// The undo, now that there is a result.
    pub(super) fn undo(self, network: &Network) -> Result<Undo> {
        network.journal(&self.container, self.result, false)
    }

    /// Writes the addresses where the container will find them.
    pub(super) fn tell(&self, bundle: &Path) -> Result<()> {
        let texts = |list: &Value, key: Option<&str>| -> Vec<String> {
            let all = list.as_array().into_iter().flatten();
            let text = all.filter_map(|one| key.map_or(one, |key| &one[key]).as_str().map(str::to_owned));
            // What ends up in a file of lines and words is an address and nothing else.
            text.map(|text| text.split('/').next().unwrap_or_default().to_owned())
                .filter(|text| text.parse::<std::net::IpAddr>().is_ok())
                .collect()
        };
        let addresses = texts(&self.result["ips"], Some("address"));
        container::set_addresses(bundle, &addresses, &texts(&self.result["dns"]["nameservers"], None))
    }
}

/// The list of plugins of a network: the first file, by name, that describes it.
fn list_of(name: &str, directory: &Path) -> Result<Value> {
    let doing = "find the CNI network";
    let shown = || directory.display().to_string();
    let mut files: Vec<PathBuf> = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        entries => entries.doing_on(doing, shown)?.flatten().map(|entry| entry.path()).collect(),
    };
    files.retain(|path| {
        path.extension().is_some_and(|kind| ["conflist", "conf", "json"].iter().any(|known| kind == *known))
    });
    files.sort_unstable();
    let mut names = Vec::new();
    for path in files {
        let wrong =
            |cause: String| Error::new(Class::Config, doing).on(path.display().to_string()).because(cause);
        let text = std::fs::read(&path).doing_on(doing, || path.display().to_string())?;
        let list: Value = match serde_json::from_slice(&text) {
            Ok(list) => list,
            Err(error) => {
                names.push(format!("{} ({error})", path.display()));
                continue;
            }
        };
        if list["name"] != name {
            names.extend(list["name"].as_str().map(str::to_owned));
            continue;
        }
        // A file may also describe one plugin alone.
        let list = match list["plugins"].is_array() {
            true => list,
            false => json!({"cniVersion": list["cniVersion"], "name": name, "plugins": [list]}),
        };
        if list["cniVersion"].as_str().is_none_or(str::is_empty) {
            return Err(wrong("it has no cniVersion".into()));
        }
        return match list["plugins"].as_array().is_some_and(|plugins| !plugins.is_empty()) {
            true => Ok(list),
            false => Err(wrong("it has no plugins".into())),
        };
    }
    let there =
        if names.is_empty() { "none is there".into() } else { format!("there are: {}", names.join(", ")) };
    Err(Error::new(Class::Config, doing)
        .on(format!("{name:?} in {}", shown()))
        .because(there)
        .hint("--cni-conf-dir or DHOW_CNI_CONF names another directory"))
}

/// A port to publish: `[ADDRESS:]HOST:CONTAINER[/tcp|udp|sctp]`.
fn port(text: &str) -> Result<Value> {
    let wrong = |cause: &str| {
        Error::new(Class::Usage, "invalid value of --publish").on(format!("{text:?}")).because(cause)
    };
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !matches!(protocol, "tcp" | "udp" | "sctp") {
        return Err(wrong("the protocol is tcp, udp or sctp"));
    }
    let form = "it must be HOST:CONTAINER or ADDRESS:HOST:CONTAINER";
    let (rest, inside) = ports.rsplit_once(':').ok_or_else(|| wrong(form))?;
    let (address, outside) = match rest.rsplit_once(':') {
        Some((address, outside)) => (address.trim_start_matches('[').trim_end_matches(']'), outside),
        None => ("", rest),
    };
    if !address.is_empty() && address.parse::<std::net::IpAddr>().is_err() {
        return Err(wrong("the part before the ports must be an address"));
    }
    let number = |word: &str| word.parse::<u16>().ok().filter(|port| *port > 0);
    let (Some(outside), Some(inside)) = (number(outside), number(inside)) else {
        return Err(wrong("a port is a number from 1 to 65535"));
    };
    let mut port = json!({"hostPort": outside, "containerPort": inside, "protocol": protocol});
    if !address.is_empty() {
        port["hostIP"] = json!(address);
    }
    Ok(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_as_people_write_them() {
        assert_eq!(
            port("8080:80").unwrap(),
            json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"})
        );
        assert_eq!(port("127.0.0.1:53:53/udp").unwrap()["hostIP"], "127.0.0.1");
        assert_eq!(port("[::1]:53:54/udp").unwrap()["hostIP"], "::1");
        for text in ["80", "0:80", "80:", "a:b", "80:80/icmp", "1.2:80:80", "70000:80", "::80"] {
            assert!(port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_plugins_are_told_what_they_need() {
        let list = json!({"cniVersion": "1.0.0", "name": "n", "plugins": []});
        let network = Network { list, path: String::new(), ports: vec![port("1:2").unwrap()] };
        let told = network.configuration(&json!({"type": "bridge"}), &Value::Null);
        assert_eq!(told, json!({"type": "bridge", "cniVersion": "1.0.0", "name": "n"}));
        let able = json!({"type": "portmap", "capabilities": {"portMappings": true}});
        let told = network.configuration(&able, &json!({"ips": []}));
        assert_eq!(told["runtimeConfig"]["portMappings"][0]["hostPort"], 1);
        assert_eq!(told["prevResult"], json!({"ips": []}));
    }

    #[test]
    fn an_error_is_told_in_the_plugins_words() {
        let answer = json!({"code": 7, "msg": "no", "details": "bad\nsubnet"});
        assert_eq!(words(Some(&answer), b"", b"x"), "no: bad subnet");
        assert_eq!(words(None, b"out", b"err"), "err");
        assert_eq!(words(None, b"", b""), "it said nothing");
    }
}
