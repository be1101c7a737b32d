//! Unpacks an image, with no container at all: `unpack_image ARCHIVE DIRECTORY`. Makes DIRECTORY/rootfs with
//! its files, and DIRECTORY/bundle, which `dhow run --bundle` and the example `run_bundle` take.

use dhow::{BundleOptions, Runtime};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    dhow::helper();
    let mut words = std::env::args().skip(1);
    let (Some(archive), Some(directory)) = (words.next(), words.next()) else {
        eprintln!("usage: unpack_image ARCHIVE DIRECTORY");
        return ExitCode::from(2);
    };
    match unpack(&archive, Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("unpack_image: {error}");
            ExitCode::FAILURE
        }
    }
}

fn unpack(archive: &str, directory: &Path) -> dhow::Result<()> {
    let runtime = std::env::var_os("DHOW_ROOT").map_or_else(Runtime::new, Runtime::at);
    let runtime = runtime.on_warning(|warning| eprintln!("unpack_image: warning: {warning}"));
    let images = runtime.images();
    let imported = images.import(archive, None)?;
    let Some(image) = imported.first() else { return Ok(()) };
    println!("{}: {} layers, {} bytes, {}", image.name, image.layers, image.size, image.id);
    images.unpack(&image.name, directory.join("rootfs"))?;
    images.bundle(&image.name, directory.join("bundle"), &BundleOptions::default())
}
