//! Checkpoint and restore: criu's work, which dhow has done.

use crate::options::Options;
use crate::process::Stage;
use crate::runtime::Outcome;
use crate::shim::{Caller, Shim, Stdio};
use crate::task::{self, Making, Now};
use dhow_shim_common::wire::{Message, Writer};
use std::path::{Path, PathBuf};

const OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";

/// The words of `dhow checkpoint` for a request's options, `containerd.runc.v1.CheckpointOptions`. Of
/// other types, or without options, the container goes on, as with runc's shim.
fn words(any: &[u8]) -> Vec<String> {
    let any = Message::read(any).unwrap_or_default();
    let value = Message::read(any.bytes(2)).filter(|_| any.text(1).ends_with(OPTIONS)).unwrap_or_default();
    let switches = [
        (!value.flag(1), "--leave-running"),
        (value.flag(2), "--tcp-established"),
        (value.flag(3), "--ext-unix-sk"),
        (value.flag(4), "--shell-job"),
        (value.flag(5), "--file-locks"),
    ];
    let mut words: Vec<String> =
        switches.iter().filter(|(is_on, _)| *is_on).map(|(_, word)| (*word).to_owned()).collect();
    for kind in value.all(6) {
        words.extend(["--empty-ns".to_owned(), String::from_utf8_lossy(kind).into_owned()]);
    }
    for (tag, flag) in [(7, "--manage-cgroups-mode"), (9, "--work-path")] {
        if !value.text(tag).is_empty() {
            words.extend([flag.to_owned(), value.text(tag).to_owned()]);
        }
    }
    words
}

/// Checkpoint: the image goes where the request says; criu's logs into the bundle unless the options
/// name a place, for the request's is what containerd keeps.
pub fn checkpoint(shim: &mut Shim, caller: Caller, message: &Message) -> Now {
    let (id, image) = (message.text(1).to_owned(), message.text(2).to_owned());
    let container = task::container(shim, &id)?;
    let (runtime, bundle) = (container.runtime.clone(), container.bundle.clone());
    let logs = bundle.join("criu-work").display().to_string();
    let options = words(message.bytes(3));
    let image_text = image.clone();
    let mut words = vec!["checkpoint", "--image-path", &image_text];
    if !options.iter().any(|word| word == "--work-path") {
        words.extend(["--work-path", &logs]);
    }
    words.extend(options.iter().map(String::as_str));
    words.push(&id);
    let name = id.clone();
    let then = move |shim: &mut Shim, outcome: Outcome| {
        let result = match outcome.code {
            0 => {
                let event = Writer::new().bytes(1, &name).bytes(2, &image);
                shim.publisher.publish("/tasks/checkpointed", "TaskCheckpointed", event);
                Ok(Writer::new())
            }
            _ => Err(task::refused("dhow checkpoint failed", &outcome)),
        };
        shim.answer(caller, result);
    };
    shim.run(&runtime, &words, Stdio::None, Box::new(then));
    Ok(None)
}

/// Where the image is that a container is to be made from, if from one. An earlier dump, which the
/// request can name as well, criu finds by a link in the image.
pub fn image_of(message: &Message, options: &Options) -> Option<PathBuf> {
    let named = [message.text(8), &options.criu_image];
    named.into_iter().find(|path| !path.is_empty()).map(PathBuf::from)
}

/// Start, of a container that comes from an image: all is made now.
///
/// # Errors
/// What could not be begun.
pub fn restore(shim: &mut Shim, caller: Caller, id: &str, image: &Path) -> Now {
    let container = task::container(shim, id)?;
    let (bundle, options) = (container.bundle.clone(), container.options.clone());
    let pid_file = bundle.join("init.pid");
    let text = |path: &Path| path.display().to_string();
    let work =
        if options.criu_work.is_empty() { text(&bundle.join("work")) } else { options.criu_work.clone() };
    let (image_text, bundle, pid_text) = (text(image), text(&bundle), text(&pid_file));
    let mut words = vec!["restore", "--detach", "--bundle", &bundle, "--pid-file", &pid_text];
    words.extend(["--image-path", &image_text, "--work-path", &work]);
    // They allow what the checkpoint was allowed to hold; where it holds nothing of the kind they do nothing.
    words.extend(["--tcp-established", "--ext-unix-sk", "--file-locks"]);
    words.extend(options.no_pivot_root.then_some("--no-pivot"));
    let making = Making { id: id.to_owned(), exec: String::new(), pid_file };
    let then = move |shim: &mut Shim, making: &Making, result: Result<i32, String>| {
        let Some(container) = shim.containers.get_mut(&making.id) else { return };
        container.init.stage = if result.is_ok() { Stage::Running } else { Stage::Created };
        let answer = result.map_err(|message| task::failed(format!("OCI runtime restore failed: {message}")));
        let answer = answer.map(|pid| {
            let event = Writer::new().bytes(1, &making.id).number(2, pid.cast_unsigned());
            shim.publisher.publish("/tasks/start", "TaskStart", event);
            Writer::new().number(1, pid.cast_unsigned())
        });
        shim.answer(caller, answer);
        task::settle(shim, &making.id, "");
    };
    task::make(shim, making, &words, Box::new(then));
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_words() {
        assert_eq!(words(b""), ["--leave-running"]);
        let value = Writer::new().number(1, 1u32).number(2, 1u32).number(4, 1u32).bytes(6, "network");
        let value = value.bytes(7, "soft").bytes(8, "/not/here").bytes(9, "/w").finish();
        let any = Writer::new().bytes(1, OPTIONS).bytes(2, &value).finish();
        let expected =
            ["--tcp-established", "--shell-job", "--empty-ns", "network", "--manage-cgroups-mode", "soft"];
        assert_eq!(words(&any), [&expected[..], &["--work-path", "/w"]].concat());
        let any = Writer::new().bytes(1, "another.Type").bytes(2, &value).finish();
        assert_eq!(words(&any), ["--leave-running"]);
    }
}
