//! `check`: a bundle or an image, read as a careful reviewer reads it.
//!
//! Nothing is run and nothing is changed: what will fail on this host ([`host`]), what gives the
//! container power over it ([`risks`]), and what the specification has given up.

mod host;
mod risks;

use super::container::Context;
use crate::error::{Class, Context as _, Result};
use crate::image::bundle;
use crate::image::store::Use;
use crate::image::{Options, Store};
use crate::rootfs::Overlay;
use crate::spec::{self, Spec};
use crate::sys::path::Root;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Low,
    /// Weakens the container.
    Medium,
    /// Lets the container take the host over.
    High,
    /// The container will not run here.
    Error,
}

/// What kind of matter it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Matter {
    /// It will fail on this host.
    Fails,
    /// It gives power away.
    Risk,
    /// The specification or the kernel has given it up.
    Deprecated,
}

/// Something that a reviewer would mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of matter it is.
    pub matter: Matter,
    /// The field of config.json.
    pub field: String,
    /// What is wrong.
    pub what: String,
    /// What can be done about it.
    pub hint: String,
}

/// The remarks in the making.
#[derive(Default)]
struct Remarks(Vec<Remark>);

impl Remarks {
    fn add(
        &mut self,
        severity: Severity,
        matter: Matter,
        field: impl Into<String>,
        what: impl Into<String>,
        hint: &str,
    ) {
        let (field, what, hint) = (field.into(), what.into(), hint.to_owned());
        self.0.push(Remark { severity, matter, field, what, hint });
    }

    fn fails(&mut self, field: impl Into<String>, what: impl Into<String>, hint: &str) {
        self.add(Severity::Error, Matter::Fails, field, what, hint);
    }

    fn risk(&mut self, severity: Severity, field: impl Into<String>, what: impl Into<String>, hint: &str) {
        self.add(severity, Matter::Risk, field, what, hint);
    }
}

/// Reads a bundle, when the directory has a config.json, or else an image of the store. The gravest
/// remark comes first.
///
/// # Errors
/// When there is neither, or config.json cannot be read at all.
pub fn check(context: &Context, what: &str) -> Result<Vec<Remark>> {
    let directory = Path::new(what);
    let mut remarks = Remarks::default();
    if directory.is_dir() {
        check_bundle(directory, &mut remarks)?;
    } else {
        check_image(context, what, &mut remarks)?;
    }
    remarks.0.sort_by_key(|remark| std::cmp::Reverse(remark.severity));
    Ok(remarks.0)
}

fn check_bundle(directory: &Path, remarks: &mut Remarks) -> Result<()> {
    let bundle =
        std::fs::canonicalize(directory).doing_on("open the bundle", || directory.display().to_string())?;
    let spec = spec::load::load(&bundle)?.spec;
    if let Err(error) = spec::validate(&spec) {
        let field = error.subject.clone().unwrap_or_default();
        remarks.fails(field, error.cause.clone().unwrap_or_else(|| error.to_string()), "correct config.json");
    }
    let root = root_of(&spec, &bundle, remarks);
    host::look(&spec, root.as_ref(), remarks);
    risks::look(&spec, remarks);
    deprecated(&spec, remarks);
    Ok(())
}

/// The root filesystem as the container will see it, as far as it can be had.
fn root_of(spec: &Spec, bundle: &Path, remarks: &mut Remarks) -> Option<Root> {
    if let Ok(Some(overlay)) = Overlay::load(bundle) {
        return overlay.view().ok();
    }
    let path = bundle.join(spec.root.as_ref().map_or("", |root| root.path.as_str()));
    match Root::at(&path) {
        Ok(root) => Some(root),
        Err(errno) => {
            let what = format!("{}: {}", path.display(), crate::error::describe(errno));
            remarks.fails(
                "root.path",
                what,
                "it is a path on the host, or in the bundle when it is relative",
            );
            None
        }
    }
}

/// A directory that goes with this value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An image is read as the bundle that `run --image` would make of it.
fn check_image(context: &Context, name: &str, remarks: &mut Remarks) -> Result<()> {
    let store = Store::open(&context.images, Use::Shared)?;
    let image = store.find(name).map_err(|error| match error.class {
        Class::NoContainer | Class::Config => {
            error.hint("give a directory with a config.json, or an image of `dhow image ls`")
        }
        _ => error,
    })?;
    let doing = "make a place for the bundle";
    let workplace = store.workplace()?;
    let scratch = workplace.fresh();
    std::fs::create_dir_all(&scratch).doing_on(doing, || scratch.display().to_string())?;
    let scratch = Scratch(scratch);
    if let Err(error) = bundle::write(&store, &image, &scratch.0, &Options::default()) {
        let what = error.cause.clone().unwrap_or_else(|| error.to_string());
        remarks.fails(
            image.name,
            what,
            error.hint.as_deref().unwrap_or("mend the image, or override it in `run`"),
        );
        return Ok(());
    }
    check_bundle(&scratch.0, remarks)
}

/// What the specification has given up, or the kernel has.
fn deprecated(spec: &Spec, remarks: &mut Remarks) {
    let mut note = |field: &str, what: &str, hint: &str| {
        remarks.add(Severity::Low, Matter::Deprecated, field, what, hint);
    };
    if !spec.hooks.prestart.is_empty() {
        note(
            "hooks.prestart",
            "prestart hooks are deprecated since runtime-spec 1.0",
            "createRuntime, createContainer and startContainer say when they run",
        );
    }
    let memory = spec.linux.resources.as_ref().and_then(|resources| resources.memory.as_ref());
    for (name, is_there) in [
        ("kernel", memory.is_some_and(|memory| memory.kernel.is_some())),
        ("kernelTCP", memory.is_some_and(|memory| memory.kernel_tcp.is_some())),
        ("useHierarchy", memory.is_some_and(|memory| memory.use_hierarchy.is_some())),
    ] {
        if is_there {
            let field = format!("linux.resources.memory.{name}");
            note(&field, "Linux has no such limit any more", "leave it out: memory.limit counts it");
        }
    }
    if spec.oci_version.starts_with("1.0.0-rc") {
        note("ociVersion", "a version from before the specification's first release", "write 1.2.0");
    }
}
