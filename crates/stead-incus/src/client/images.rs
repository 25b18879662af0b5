//! Images and their aliases.

use super::{Client, shape};
use crate::{
    Error, Scope, Tagged,
    requests::images::{self, ImageServer},
    types::{Config, Image, ImageAlias, OperationStatus},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::path::Path;
use tokio::io::AsyncReadExt;

/// A project on a server: the source of a copy between servers.
#[derive(Debug, Clone, Copy)]
pub struct OnServer<'a> {
    /// The server.
    pub client: &'a Client,
    /// The project on that server.
    pub project: &'a str,
}

#[derive(Deserialize)]
struct Made {
    fingerprint: String,
}

impl Client {
    /// Images of a project.
    pub async fn images(&self, project: &str) -> Result<Vec<Image>, Error> {
        self.list(&images::list(Scope::Project(project), None)).await
    }
    /// One image, by its fingerprint or a prefix of it.
    pub async fn image(&self, project: &str, fingerprint: &str) -> Result<Tagged<Image>, Error> {
        self.fetch_tagged(&images::get(project, fingerprint)).await
    }
    /// Uploads a unified image (`rootfs` absent) or a split one; returns its fingerprint, which is computed from the
    /// files first. An image the server already has is not sent.
    ///
    /// # Errors
    /// [`Error::File`] when a file cannot be read.
    pub async fn upload_image(
        &self,
        project: &str,
        file: &Path,
        rootfs: Option<&Path>,
    ) -> Result<String, Error> {
        let fingerprint = fingerprint(std::iter::once(file).chain(rootfs)).await?;
        match self.image(project, &fingerprint).await {
            Ok(_) => return Ok(fingerprint),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
        let none = Config::new();
        let request = match rootfs {
            Some(rootfs) => images::upload_split(self.dialect(), project, file, rootfs, &none),
            None => images::upload_unified(self.dialect(), project, file, &none),
        };
        self.made(&request).await
    }
    /// Publishes a stopped instance or a snapshot (`name/snapshot`) as an image; returns the image's fingerprint.
    pub async fn publish_image(
        &self,
        project: &str,
        instance: &str,
        properties: &Config,
        aliases: &[&str],
    ) -> Result<String, Error> {
        self.made(&images::publish(project, instance, properties, aliases)).await
    }
    /// Makes the server fetch an image from another server of the same engine, which it must be able to reach. `names`
    /// are the aliases the image gets here.
    ///
    /// # Errors
    /// [`Error::Refused`] when `from` does not listen on the network.
    pub async fn copy_image(
        &self,
        project: &str,
        from: OnServer<'_>,
        fingerprint: &str,
        names: &[&str],
    ) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Shared {
            secret: String,
        }
        let environment = &from.client.server_info().await?.environment;
        let mut first = None;
        for address in &environment.addresses {
            // A secret works once.
            let share = images::share(from.project, fingerprint);
            let (sharing, operation) = from.client.begin_operation(&share).await?;
            let server = ImageServer {
                url: format!("https://{address}"),
                certificate: environment.certificate.clone(),
                secret: Some(shape::<Shared>(&share, operation.metadata)?.secret),
                project: from.project.to_owned(),
            };
            let fetch = images::fetch(from.client.dialect(), project, &server, fingerprint, names);
            match self.run(&fetch, fetch.timeout()).await {
                Ok(_) => return Ok(()),
                Err(e) => {
                    let _ = from.client.cancel(&sharing).await;
                    // This server may not reach that address: try the next one.
                    match e {
                        Error::Operation { .. } | Error::Api { .. } => first = Some(first.unwrap_or(e)),
                        other => return Err(other),
                    }
                }
            }
        }
        Err(first.unwrap_or_else(|| super::silent(from.client)))
    }
    /// Writes an image's file to `to`: a unified image as its file, a split image as a multipart form with both parts.
    pub async fn export_image(&self, project: &str, fingerprint: &str, to: &Path) -> Result<(), Error> {
        let request = images::export(project, fingerprint).at_most(u64::MAX);
        self.check(&request).await?;
        let answer = self.transport().download(&request, to).await?;
        if answer.status.is_success() { Ok(()) } else { Err(super::refused(&request, &answer)) }
    }
    /// Asks an image's source for a newer version; returns whether there was one.
    pub async fn refresh_image(&self, project: &str, fingerprint: &str) -> Result<bool, Error> {
        let request = images::refresh(project, fingerprint);
        let done = self.run(&request, request.timeout()).await?;
        Ok(done.is_some_and(|d| d.metadata.get("refreshed") == Some(&true.into())))
    }
    /// Deletes an image, and waits for it.
    pub async fn delete_image(&self, project: &str, fingerprint: &str) -> Result<(), Error> {
        self.run(&images::delete(project, fingerprint), super::OPERATION_TIMEOUT).await.map(drop)
    }

    /// Aliases of images.
    pub async fn image_aliases(&self, project: &str) -> Result<Vec<ImageAlias>, Error> {
        self.list(&images::aliases(project)).await
    }
    /// One alias.
    pub async fn image_alias(&self, project: &str, name: &str) -> Result<Tagged<ImageAlias>, Error> {
        self.fetch_tagged(&images::alias(project, name)).await
    }
    /// Points the alias `name` at the image; creates the alias if it does not exist.
    pub async fn set_image_alias(&self, project: &str, name: &str, fingerprint: &str) -> Result<(), Error> {
        match self.image_alias(project, name).await {
            Ok(Tagged { value, .. }) if value.target == fingerprint => Ok(()),
            Ok(Tagged { etag, .. }) => {
                self.send(&images::update_alias(project, name, fingerprint, etag)).await.map(drop)
            }
            Err(e) if e.is_not_found() => {
                self.send(&images::create_alias(project, name, fingerprint)).await.map(drop)
            }
            Err(e) => Err(e),
        }
    }

    async fn made(&self, request: &crate::Request) -> Result<String, Error> {
        let done: Option<OperationStatus> = self.run(request, request.timeout()).await?;
        let metadata = done.map(|d| d.metadata).unwrap_or_default();
        Ok(shape::<Made>(request, metadata)?.fingerprint)
    }
}

/// Fingerprint as the servers compute it: SHA-256 of the image's file, or of both files of a split image, metadata first.
async fn fingerprint(files: impl Iterator<Item = &Path>) -> Result<String, Error> {
    let mut digest = Sha256::new();
    for path in files {
        let failed = |source| Error::File { path: path.display().to_string(), source };
        let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
        let mut piece = vec![0; 1 << 20];
        loop {
            match file.read(&mut piece).await.map_err(failed)? {
                0 => break,
                n => digest.update(&piece[..n]),
            }
        }
    }
    Ok(digest.finalize().iter().map(|b| format!("{b:02x}")).collect())
}
