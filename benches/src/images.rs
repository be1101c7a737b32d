//! Images: the same image unpacked by dhow, umoci, skopeo and podman, and by plain tools.
//!
//! All write to one tmpfs, whose costs do not depend on what was deleted a moment ago, as ext4's
//! do. Each sample is taken by a process of its own: what a command and its children used is then
//! what that process's children used, peak RSS included.

use crate::measure::Shuffle;
use crate::options::Options;
use crate::stats::{Measured, Report};
use crate::workshop;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Who unpacks, and the script that makes it do so. `$image` is the layout, `$work` an empty
/// directory, `$sid` the folder with the peers, in which `$image` is /media and `$work` /mnt.
const CONTESTANTS: [(&str, &str, &str); 8] = [
    ("dhow", "gzip", r#""$dhow" --root "$work" image import -q --name x "$image""#),
    ("umoci", "gzip", "$inside umoci unpack --image /media:latest /mnt/x"),
    (
        "skopeo",
        "gzip",
        "$inside skopeo --insecure-policy copy -q oci:/media:latest 'containers-storage:[overlay@/mnt/a+/mnt/b]x:latest'",
    ),
    (
        "podman",
        "gzip",
        "$inside podman --root /mnt/a --runroot /mnt/b --storage-driver overlay pull -q oci:/media:latest",
    ),
    (
        "piped",
        "gzip",
        r#"for one in $layers; do mkdir "$work/$one"; gzip -dc "$image/blobs/sha256/$one" | tar -x --numeric-owner -C "$work/$one"; done"#,
    ),
    ("dhow", "zstd", r#""$dhow" --root "$work" image import -q --name x "$image""#),
    (
        "skopeo",
        "zstd",
        "$inside skopeo --insecure-policy copy -q oci:/media:latest 'containers-storage:[overlay@/mnt/a+/mnt/b]x:latest'",
    ),
    (
        "piped",
        "zstd",
        r#"for one in $layers; do mkdir "$work/$one"; zstd -qdc "$image/blobs/sha256/$one" | tar -x --numeric-owner -C "$work/$one"; done"#,
    ),
];

/// What every script begins with.
const PROLOGUE: &str = r#"
set -eu
manifest=$(grep -o 'sha256:[0-9a-f]*' "$image/index.json" | head -n 1)
layers=$(grep -o 'sha256:[0-9a-f]*' "$image/blobs/sha256/${manifest#sha256:}" | tail -n +2 | cut -d : -f 2)
inside="chroot $sid"
case $who in
umoci | skopeo | podman)
    mount --bind "$sid" "$sid"
    for dir in proc sys dev; do mount --rbind "/$dir" "$sid/$dir"; done
    mount --bind "$image" "$sid/media"; mount --bind "$work" "$sid/mnt"
    mount -t tmpfs tmpfs "$sid/var/tmp"
esac
"#;

/// Takes one sample, for a parent of the same program: prints wall and processor time in ms, and
/// the peak RSS in KiB.
pub fn sample(script: &str) -> Result<(), String> {
    let start = Instant::now();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).stdin(Stdio::null()).stdout(Stdio::null());
    let output = command.stderr(Stdio::piped()).output().map_err(|e| format!("unshare: {e}"))?;
    let wall = start.elapsed().as_secs_f64() * 1e3;
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()));
    }
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|e| e.to_string())?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    println!("{wall} {} {}", micros / 1000, usage.max_rss());
    Ok(())
}

/// Measures every contestant in shuffled rounds, and prints medians and ratios.
pub fn run(options: &Options) -> Result<(), String> {
    let place = options.out.join("images");
    fs::create_dir_all(&place).map_err(|e| format!("{}: {e}", place.display()))?;
    let image = Path::new("/var/tmp/dhow-bench-image");
    let built = Command::new(workshop::workspace().join("benches/image.sh")).arg(image).status();
    if !built.is_ok_and(|status| status.success()) {
        return Err("the image could not be built".into());
    }
    let mut samples = vec![Vec::new(); CONTESTANTS.len()];
    let mut shuffle = Shuffle::new();
    for _ in 0..options.runs(5) {
        for which in shuffle.order(CONTESTANTS.len()) {
            samples[which].push(once(options, &place, image, CONTESTANTS[which])?);
        }
    }
    let mut report = Report::of_this_machine();
    for ((who, kind, _), taken) in CONTESTANTS.iter().zip(&samples) {
        for (part, unit, column) in [("cpu", "ms", 1), ("wall", "ms", 0), ("rss", "KiB", 2)] {
            let values: Vec<f64> = taken.iter().map(|sample| sample[column]).collect();
            report.results.extend(Measured::of(&format!("image/{part}"), kind, who, unit, &values));
        }
    }
    print!("{}", table(&report));
    report.write(&options.out.join("images.json"))
}

fn once(
    options: &Options,
    place: &Path,
    image: &Path,
    (who, kind, script): (&str, &str, &str),
) -> Result<[f64; 3], String> {
    let mount = |kind: Option<&str>| match kind {
        Some(kind) => nix::mount::mount(
            Some(kind),
            place,
            Some(kind),
            nix::mount::MsFlags::empty(),
            Some("mode=755,size=80%"),
        ),
        None => nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH),
    };
    mount(Some("tmpfs")).map_err(|e| format!("mount a tmpfs at {}: {e}", place.display()))?;
    let output = Command::new(std::env::current_exe().map_err(|e| e.to_string())?)
        .args(["--sample", &format!("{PROLOGUE}{script}")])
        .env("image", image.join(kind))
        .env("work", place)
        .env("sid", workshop::peers().join("sid"))
        .env("dhow", &options.dhow)
        .env("who", who)
        .output();
    let unmounted = mount(None);
    let output = output.map_err(|e| e.to_string())?;
    unmounted.map_err(|e| format!("umount {}: {e}", place.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().map_err(|_| format!("{who}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn table(report: &Report) -> String {
    let mut text = format!("{}\n", report.machine.join("; "));
    text += "contestant    layers    CPU s  wall s  RSS MB   CPU and wall of dhow's\n";
    for (who, kind, _) in CONTESTANTS {
        let median = |part: &str, who: &str| {
            report.find(&format!("image/{part}"), kind, who).map_or(f64::NAN, |found| found.median)
        };
        let (cpu, wall) = (median("cpu", who), median("wall", who));
        text += &format!(
            "{who:<13} {kind:<6} {:>8.2} {:>7.2} {:>7.1} {:>8.2} {:>6.2}\n",
            cpu / 1e3,
            wall / 1e3,
            median("rss", who) / 1024.0,
            cpu / median("cpu", "dhow"),
            wall / median("wall", "dhow"),
        );
    }
    text
}
