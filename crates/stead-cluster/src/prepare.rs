//! Preparations of `up` before it observes and plans: image, overlays, certificates, and the desired state.

use crate::{
    ClusterError, Events, Host, Layout, Record,
    blocking::blocking,
    claim,
    desired::{self, Desired, Inputs},
    identities::Pki,
};
use futures_util::future::join_all;
use std::{collections::BTreeMap, path::PathBuf};
use stead_model::{ClusterSpec, Digest, NodeName, recipe::OverlaySource};

/// A request for `up`.
#[derive(Debug, Clone)]
pub struct UpRequest {
    /// The cluster file.
    pub spec: ClusterSpec,
    /// Directory that its relative paths are relative to.
    pub base_dir: PathBuf,
}

/// Everything `up` needs. Preparing it only changes the image store's layer cache.
pub(crate) struct Prepared {
    pub(crate) layout: Layout,
    pub(crate) record: Record,
    pub(crate) desired: Desired,
    pub(crate) pki: Pki,
    /// The reason for the choice of the backend.
    pub(crate) backend_why: String,
}

pub(crate) async fn prepare(
    host: &Host,
    request: UpRequest,
    events: &Events,
) -> Result<Prepared, ClusterError> {
    let UpRequest { spec, base_dir } = request;
    let layout = host.layout(&spec.name);
    claim::check(&layout)?;
    let store = host.store()?;
    let (digest, manifest) = store.manifest(&spec.image)?;
    let engine = spec.engine_kind().unwrap_or(manifest.engine);
    if !engine.is_none() && engine != manifest.engine {
        return Err(ClusterError::Refused(format!(
            "cluster {} asks for {engine}, but image {} has {}",
            spec.name, spec.image, manifest.engine
        )));
    }
    let old = Record::load(&layout)?;
    let record = Record {
        schema: 1,
        members: old.as_ref().map(|r| r.members.clone()).unwrap_or_default(),
        leaving: old.map(|r| r.leaving).unwrap_or_default(),
        spec,
        base_dir,
        image: digest,
        engine,
    };
    let overlays = overlay_layers(&store, &record, events).await?;
    let facts = blocking("look at this host", stead_machine::doctor::observe).await?;
    let choice = stead_machine::backend::choose(&facts);
    let pki = Pki::load(&layout, &record)?;
    let desired = desired::desired(&Inputs {
        layout: &layout,
        record: &record,
        manifest: &manifest,
        blobs: store.blob_dir(),
        overlays: &overlays,
        identities: &pki.nodes,
        host: &facts,
        auto: choice.backend,
    })?;
    Ok(Prepared { layout, record, desired, pki, backend_why: choice.why })
}

/// Builds the boot overlays of all nodes, or finds them in the cache, each once, in parallel.
async fn overlay_layers(
    store: &stead_image::Store,
    record: &Record,
    events: &Events,
) -> Result<BTreeMap<NodeName, Vec<Digest>>, ClusterError> {
    let nodes = record.spec.resolve();
    let mut wanted: Vec<&OverlaySource> = Vec::new();
    for o in nodes.iter().flat_map(|n| &n.overlays) {
        if !wanted.contains(&o) {
            wanted.push(o);
        }
    }
    if !wanted.is_empty() {
        events.step(format!("overlays ({})", wanted.len()));
    }
    let builds = wanted.iter().map(|o| {
        let (store, base, options) = (store.clone(), record.base_dir.clone(), o.options());
        blocking("build an overlay", move || stead_image::overlay::build_layer(&store, &options, &base))
    });
    let mut layers = Vec::new();
    for built in join_all(builds).await {
        let (layer, warnings) = built??;
        warnings.into_iter().for_each(|text| events.warning(text));
        layers.push(layer.artifact.digest);
    }
    let digest_of = |o: &OverlaySource| wanted.iter().position(|w| *w == o).map(|i| layers[i].clone());
    Ok(nodes.iter().map(|n| (n.name.clone(), n.overlays.iter().filter_map(digest_of).collect())).collect())
}
