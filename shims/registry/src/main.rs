//! What `dhow image pull` and `push` start to talk to a registry.
//!
//! It knows nothing of dhow's store: a pull leaves an OCI layout in a directory, a push reads
//! blobs from one. Nothing that comes from a registry is trusted: dhow checks every digest when it
//! imports the layout. Progress goes to standard output, one `read N of M` a line.

mod connect;
mod credentials;
mod pull;
mod push;

use clap::{Args, Parser, Subcommand};
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use std::path::PathBuf;
use std::process::ExitCode;

/// What went wrong, in one line.
type Result<T, E = String> = std::result::Result<T, E>;

#[derive(Parser)]
#[command(version, about)]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Fetch one image into an OCI layout
    Pull {
        #[command(flatten)]
        place: Place,
        /// OS/ARCHITECTURE[/VARIANT]: which image of an index
        #[arg(long)]
        platform: String,
        /// An empty directory for the layout
        #[arg(long)]
        to: PathBuf,
        /// A directory of blobs that are there already, by their hex digests
        #[arg(long)]
        have: Option<PathBuf>,
        /// Registries that are asked first
        #[arg(long)]
        mirror: Vec<String>,
    },
    /// Send one image
    Push {
        #[command(flatten)]
        place: Place,
        /// The directory that its blobs are in, by their hex digests
        #[arg(long)]
        blobs: PathBuf,
        /// The hex digest of its manifest
        #[arg(long)]
        manifest: String,
    },
}

/// Where an image is, and how to get there.
#[derive(Args, Clone)]
struct Place {
    /// The registry's host, with its port where it has one
    #[arg(long)]
    registry: String,
    /// The path below it
    #[arg(long)]
    repository: String,
    /// A tag, or a digest
    #[arg(long)]
    reference: String,
    /// Certificates that are trusted too, PEM
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// HTTP without TLS
    #[arg(long)]
    plain_http: bool,
}

/// The most memory that this program may have: blobs pass through it piece by piece, but a manifest or a
/// token is read whole, and a hostile one has no end.
const MOST_MEMORY: u64 = 256 << 20;

fn main() -> ExitCode {
    let command = Command::parse();
    // Who asked for the image may be killed: then nobody wants it.
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return fail(&error.to_string());
    }
    let most = Rlimit { current: Some(MOST_MEMORY), maximum: Some(MOST_MEMORY) };
    if let Err(error) = setrlimit(Resource::As, most) {
        return fail(&error.to_string());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.to_string()),
    };
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return fail("TLS cannot be set up");
    }
    let outcome = runtime.block_on(async {
        match command.what {
            What::Pull { place, platform, to, have, mirror } => {
                pull::pull(&place, &platform, &to, have.as_deref(), &mirror).await
            }
            What::Push { place, blobs, manifest } => push::push(&place, &blobs, &manifest).await,
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => fail(&message),
    }
}

fn fail(message: &str) -> ExitCode {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    eprintln!("{line}");
    ExitCode::FAILURE
}
