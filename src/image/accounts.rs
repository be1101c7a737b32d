//! Who runs the payload, by the image's own passwd and group.

use super::archive::Found;
use super::refused;
use crate::error::{Context as _, Result};
use crate::rootfs::Overlay;
use crate::sys::path::Root;
use nix::errno::Errno;
use nix::unistd::geteuid;
use rustix::fs::{FileType, OFlags};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

/// The most that an image's passwd or group may have, in bytes.
const MOST_ACCOUNTS: u64 = 4 * 1024 * 1024;

/// Who runs the payload.
pub(super) struct Account {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    pub home: String,
}

/// `USER[:GROUP]` by the image's own passwd and group, with more groups beside its own.
///
/// # Errors
/// When the image does not know a name.
pub(super) fn account(user: &str, more: &[String], overlay: &Overlay) -> Result<Account> {
    let (name, group) = user.split_once(':').map_or((user, None), |(name, group)| (name, Some(group)));
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    let layers = match geteuid().is_root() {
        true => Layers::Merged(overlay.view()?),
        false => Layers::Apart(overlay),
    };
    let passwd = table(&layers, "etc/passwd")?;
    let entry = passwd.iter().find(|fields| {
        fields[0] == name || number.is_some() && fields.get(2).and_then(|uid| uid.parse().ok()) == number
    });
    let field = |index: usize| entry.and_then(|fields| fields.get(index)?.parse::<u32>().ok());
    let uid = number
        .or_else(|| field(2))
        .ok_or_else(|| refused(format!("its user {name:?} is not in its passwd")))?;
    let home = entry.and_then(|fields| fields.get(5).cloned()).filter(|home| home.starts_with('/'));
    let home = home.unwrap_or_else(|| "/".into());
    let all_groups = table(&layers, "etc/group")?;
    let gid_of = |fields: &Vec<String>| fields.get(2).and_then(|gid| gid.parse::<u32>().ok());
    let find = |group: &str| {
        let found = || all_groups.iter().find(|fields| fields[0] == group).and_then(gid_of);
        let gid = group.parse().ok().or_else(found);
        gid.ok_or_else(|| refused(format!("its group {group:?} is not in its group file")))
    };
    let more = more.iter().map(|group| find(group)).collect::<Result<Vec<u32>>>()?;
    if let Some(group) = group {
        return Ok(Account { uid, gid: find(group)?, groups: more, home });
    }
    let gid = field(3).unwrap_or(0);
    let login = entry.map_or("", |fields| fields[0].as_str());
    let member = |fields: &&Vec<String>| {
        !login.is_empty() && fields.get(3).is_some_and(|members| members.split(',').any(|one| one == login))
    };
    let own = all_groups.iter().filter(member).filter_map(gid_of).filter(|one| *one != gid);
    let mut groups: Vec<u32> = own.collect();
    groups.extend(more.into_iter().filter(|one| !groups.contains(one)).collect::<Vec<_>>());
    Ok(Account { uid, gid, groups, home })
}

/// The layers, to be looked at by path.
enum Layers<'a> {
    /// As the container will see them: links between layers and what a layer hides are the kernel's
    /// business.
    Merged(Root),
    /// One by one, for a user who cannot mount them.
    Apart(&'a Overlay),
}

/// The fields of a file of accounts. Nothing in the image can lead the reading out of it, and nothing
/// but a file is ever opened.
fn table(layers: &Layers<'_>, path: &str) -> Result<Vec<Vec<String>>> {
    let found = match layers {
        Layers::Merged(root) => root.resolve(Path::new(path)).ok(),
        Layers::Apart(overlay) => topmost(overlay, Path::new(path))?,
    };
    let found = found.and_then(|fd| Found::of(fd).ok()).filter(|found| found.kind() == FileType::RegularFile);
    let Some(found) = found else { return Ok(Vec::new()) };
    let file = File::from(found.open(OFlags::RDONLY).doing_on("open", || path)?);
    let mut text = Vec::new();
    file.take(MOST_ACCOUNTS).read_to_end(&mut text).doing_on("read", || path)?;
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect())
}

/// The file in the topmost layer that has it: no symlink is followed, since it may lead to another
/// layer.
fn topmost(overlay: &Overlay, path: &Path) -> Result<Option<OwnedFd>> {
    for layer in &overlay.lower {
        let root = Root::at(layer).doing_on("open a layer", || layer.display().to_string())?;
        match root.resolve_without_symlinks(path) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::ENOENT) => {}
            // A symlink, a whiteout, or a file in its directory's place: what is below is hidden.
            Err(_) => return Ok(None),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::{Scene, Tar};
    use nix::sys::stat::SFlag;
    use std::path::PathBuf;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\napp:x:7:8::/home/app:/bin/sh\n";

    #[test]
    fn users_are_the_images_own() {
        if !geteuid().is_root() {
            return;
        }
        let scene = Scene::new("accounts");
        let lower = Tar::default().file("etc/passwd", PASSWD).file("etc/group", "app:x:8:\nmore:x:9:x,app\n");
        // A link out of the image leads to the image's own file of that name, which is not there.
        let upper = Tar::default().symlink("etc/group", "/../../../../../etc/group-").file("etc/other", "");
        // One that stays inside is followed, wherever it leads.
        let linked =
            Tar::default().symlink("etc/passwd", "/usr/passwd").file("usr/passwd", "linked:x:5:6::/l:\n");
        scene.layout(&[lower.end(), upper.end(), linked.end()]);
        scene.import().unwrap();
        let of = |user: &str, layers: &[usize]| {
            let lower: Vec<PathBuf> = layers.iter().map(|layer| scene.layer(*layer)).collect();
            let overlay = Overlay { lower, ..Overlay::default() };
            account(user, &[], &overlay).map(|one| (one.uid, one.gid, one.groups, one.home))
        };
        assert_eq!(of("app", &[0]).unwrap(), (7, 8, vec![9], "/home/app".into()));
        assert_eq!(of("7:more", &[0]).unwrap(), (7, 9, vec![], "/home/app".into()));
        assert_eq!(of("", &[0]).unwrap(), (0, 0, vec![], "/root".into()));
        assert_eq!(of("1234", &[0]).unwrap(), (1234, 0, vec![], "/".into()));
        assert!(of("nobody", &[0]).is_err() && of("app:none", &[0]).is_err());
        assert_eq!(of("app", &[1, 0]).unwrap().2, Vec::<u32>::new());
        assert_eq!(of("linked", &[2, 1, 0]).unwrap(), (5, 6, vec![], "/l".into()));
        assert!(of("app", &[2, 1, 0]).is_err());
        // A device is not even opened: doing so can have effects.
        let device = Overlay { lower: vec![scene.base.join("device")], ..Overlay::default() };
        std::fs::create_dir_all(device.lower[0].join("etc")).unwrap();
        let node = device.lower[0].join("etc/passwd");
        nix::sys::stat::mknod(&node, SFlag::S_IFIFO, nix::sys::stat::Mode::from_bits_retain(0o666), 0)
            .unwrap();
        assert!(account("app", &[], &device).is_err());
        let overlay = Overlay { lower: vec![scene.layer(0)], ..Overlay::default() };
        let with = |more: &[&str]| {
            let more: Vec<String> = more.iter().map(|&group| group.to_owned()).collect();
            account("app", &more, &overlay).map(|one| one.groups)
        };
        assert_eq!(with(&["more", "77"]).unwrap(), [9, 77]);
        assert!(with(&["none"]).is_err());
    }
}
