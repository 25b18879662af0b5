//! shim
#![allow(missing_docs)]
use std::path::*;
use stead_model::*;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct ImageError;
impl ImageError {
    pub fn is_bad_input(&self) -> bool {
        false
    }
}
#[derive(Debug, Clone)]
pub struct Store;
impl Store {
    pub fn open(_: &Path) -> Result<Self, ImageError> {
        Ok(Store)
    }
    pub fn manifest(&self, _: &ImageName) -> Result<(Digest, Manifest), ImageError> {
        Err(ImageError)
    }
    pub fn blob_dir(&self) -> PathBuf {
        PathBuf::new()
    }
}
pub mod overlay {
    use super::*;
    pub fn build_layer(
        _: &Store,
        _: &stead_model::recipe::OverlayOptions,
        _: &Path,
    ) -> Result<stead_model::manifest::Layer, ImageError> {
        Err(ImageError)
    }
}
