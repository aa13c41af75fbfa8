//! `carob image`: the content store from the command line.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use carob_image::{Credential, Image, Images, LayerPart, LayerStep, Progress};
use clap::Subcommand;
use comfy_table::{Table, presets};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use crate::DataDirOption;
use crate::config::ConfigFile;
use crate::data_dir::DataDir;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    data: DataDirOption,
    /// Registries' mirrors, certificates and limits.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Take in an OCI layout (a folder or a tar) or a docker archive.
    Import {
        /// Folder or archive.
        path: PathBuf,
        /// Name of the image; the names that the archive holds where it isn't given.
        #[arg(long, value_name = "REFERENCE")]
        name: Option<String>,
    },
    /// Fetch an image from its registry.
    Pull {
        /// `registry/repository:tag` or `…@sha256:…`
        reference: String,
        /// `user:password`; better by the environment.
        #[arg(long, env = "CAROB_REGISTRY_CREDENTIAL", hide_env_values = true, value_name = "USER:PASSWORD")]
        credential: Option<String>,
    },
    /// List the images.
    Ls,
    /// Remove images by name; layers that nothing uses go as well.
    Rm {
        /// Names.
        #[arg(required = true)]
        references: Vec<String>,
        /// Also of images that containers use: these run on, but none is started anew.
        #[arg(long)]
        force: bool,
    },
}

pub async fn run(options: Options) -> Result<()> {
    let path = &options.data.data_dir;
    let dir = match options.action {
        Action::Import { .. } | Action::Pull { .. } => DataDir::create(path)?,
        Action::Ls | Action::Rm { .. } => DataDir::open(path)?,
    };
    let config = ConfigFile::read(options.config.as_deref())?;
    let images = Images::open(&dir.images(), config.images)?;
    match options.action {
        Action::Import { path, name } => {
            let bars = Bars::default();
            let imported = images.import_with(&path, name.as_deref(), &bars).await;
            bars.clear();
            let imported = imported.with_context(|| format!("cannot import {}", path.display()))?;
            imported.iter().for_each(print_image);
        }
        Action::Pull { reference, credential } => {
            let credentials = credential.map(|text| parse_credential(&reference, &text)).transpose()?;
            let bars = Bars::default();
            let pulled = images.pull(&reference, credentials.as_slice(), &bars).await;
            bars.clear();
            print_image(&pulled.with_context(|| format!("cannot pull {reference}"))?);
        }
        Action::Ls => {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING);
            table.set_header(["IMAGE", "DIGEST", "SIZE"]);
            for image in images.list().await? {
                table.add_row([image.reference, short(&image.digest), HumanBytes(image.size).to_string()]);
            }
            println!("{table}");
        }
        Action::Rm { references, force } => {
            let mut freed = 0;
            for reference in &references {
                let users = if force { 0 } else { images.users(reference).await? };
                if users > 0 {
                    let containers = if users == 1 { "a container uses" } else { "containers use" };
                    bail!("{containers} {reference}: with --force they run on, but none is started anew");
                }
                match images.remove(reference).await? {
                    Some(collected) => freed += collected.bytes,
                    None => bail!("there is no image {reference}"),
                }
            }
            println!("freed {}", HumanBytes(freed));
        }
    }
    Ok(())
}

fn print_image(image: &Image) {
    println!("{}  {}  {}", image.reference, short(&image.digest), HumanBytes(image.size));
}

fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

fn parse_credential(reference: &str, text: &str) -> Result<Credential> {
    let (user, password) = text.split_once(':').context("a credential is USER:PASSWORD")?;
    Ok(Credential {
        registry: carob_image::Reference::parse(reference)?.registry,
        username: user.to_owned(),
        password: password.to_owned(),
        identity_token: None,
        shared: true,
    })
}

/// A bar per layer on a terminal; silence elsewhere.
#[derive(Default)]
struct Bars {
    screen: MultiProgress,
    layers: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    fn clear(&self) {
        // A terminal that went away is no reason to fail.
        let _ = self.screen.clear();
    }

    fn layers(&self) -> std::sync::MutexGuard<'_, HashMap<String, ProgressBar>> {
        self.layers.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Progress for Bars {
    fn resolved(&self, _reference: &str, layers: &[LayerPart]) {
        let style = ProgressStyle::with_template("{prefix} {bar:40} {bytes:>10}/{total_bytes:10} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let mut known = self.layers();
        for layer in layers {
            let bar = self.screen.add(ProgressBar::new(layer.size).with_style(style.clone()));
            bar.set_prefix(short(&layer.digest));
            known.insert(layer.digest.clone(), bar);
        }
    }

    fn layer(&self, digest: &str, step: LayerStep) {
        let known = self.layers();
        let Some(bar) = known.get(digest) else { return };
        match step {
            LayerStep::Bytes(bytes) => bar.set_position(bytes),
            LayerStep::Present => bar.finish_with_message("already here"),
            LayerStep::Done => bar.finish_with_message("done"),
        }
    }
}
