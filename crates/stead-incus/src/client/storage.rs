//! Storage pools and volumes.

use super::{Client, contents, shape};
use crate::{
    ETag, Error, Scope, Tagged,
    requests::storage,
    types::{StoragePool, StorageSpace, Volume, VolumeState},
};

impl Client {
    /// All storage pools.
    pub async fn storage_pools(&self) -> Result<Vec<StoragePool>, Error> {
        self.list(&storage::pools()).await
    }
    /// One pool; LXD 5.0 sends no ETag with it.
    pub async fn storage_pool(&self, name: &str) -> Result<(StoragePool, Option<ETag>), Error> {
        let request = storage::pool(name);
        let (envelope, etag) = self.send(&request).await?;
        Ok((shape(&request, contents(envelope))?, etag))
    }
    /// A pool's space on the member that answers, or on `target`.
    pub async fn storage_space(&self, name: &str, target: Option<&str>) -> Result<StorageSpace, Error> {
        self.fetch(&storage::pool_space(name, target)).await
    }
    /// Volumes of a pool.
    pub async fn volumes(&self, pool: &str, scope: Scope<'_>) -> Result<Vec<Volume>, Error> {
        self.list(&storage::volumes(pool, scope)).await
    }
    /// One volume.
    pub async fn volume(
        &self,
        pool: &str,
        project: &str,
        kind: &str,
        name: &str,
        target: Option<&str>,
    ) -> Result<Tagged<Volume>, Error> {
        self.fetch_tagged(&storage::volume(pool, project, kind, name, target)).await
    }
    /// Space used by a volume.
    pub async fn volume_state(
        &self,
        pool: &str,
        project: &str,
        kind: &str,
        name: &str,
        target: Option<&str>,
    ) -> Result<VolumeState, Error> {
        self.fetch(&storage::volume_state(pool, project, kind, name, target)).await
    }
}
