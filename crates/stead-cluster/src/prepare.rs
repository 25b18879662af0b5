//! Everything `up` needs before it plans: image, overlays, certificates, and what is there.

use crate::{
    ClusterError, Events, Host, Layout, Plan, Record,
    apply::UpRequest,
    claim,
    desired::{self, Desired, Inputs},
    files, observe, plan,
};
use futures_util::future::join_all;
use std::{collections::BTreeMap, net::IpAddr, path::Path, time::SystemTime};
use stead_agent::{
    Identity,
    pki::{ClusterCa, renewal_due},
};
use stead_model::{Digest, NodeName, recipe::OverlaySource};

/// Everything `up` needs, prepared.
pub(crate) struct Prepared {
    pub(crate) layout: Layout,
    pub(crate) record: Record,
    pub(crate) desired: Desired,
    pub(crate) plan: Plan,
    pub(crate) ca: ClusterCa,
    pub(crate) operator: Identity,
    pub(crate) identities: BTreeMap<NodeName, Identity>,
    /// Why the backend is what it is.
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
            "cluster {} asks for {engine}, but image {} carries {}",
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
    let facts = tokio::task::spawn_blocking(stead_machine::doctor::observe)
        .await
        .map_err(|source| ClusterError::Task { task: "look at this host", source })?;
    let choice = stead_machine::backend::choose(&facts);
    let (ca, operator, identities) = load_pki(&layout, &record)?;
    let desired = desired::desired(&Inputs {
        layout: &layout,
        record: &record,
        manifest: &manifest,
        blobs: store.blob_dir(),
        overlays: &overlays,
        identities: &identities,
        host: &facts,
        auto: choice.backend,
    })?;
    let (mut observed, agents) = observe::observe(&layout, Some(&operator)).await?;
    if !record.engine.is_none() {
        observe::settle_engines(&mut observed, &record.members, &agents, events).await;
    }
    let plan = plan::plan(&record, &desired, &observed);
    Ok(Prepared { layout, record, desired, plan, ca, operator, identities, backend_why: choice.why })
}

/// Builds (or finds in the cache) the boot overlays of all nodes, each one once, in parallel.
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
        tokio::task::spawn_blocking(move || stead_image::overlay::build_layer(&store, &options, &base))
    });
    let mut layers = Vec::new();
    for built in join_all(builds).await {
        let layer = built.map_err(|source| ClusterError::Task { task: "build an overlay", source })??;
        layers.push(layer.artifact.digest);
    }
    let digest_of = |o: &OverlaySource| wanted.iter().position(|w| *w == o).map(|i| layers[i].clone());
    Ok(nodes.iter().map(|n| (n.name.clone(), n.overlays.iter().filter_map(digest_of).collect())).collect())
}

/// The CA, the operator's identity and every node's, from the files or (not yet written) made now.
fn load_pki(
    layout: &Layout,
    record: &Record,
) -> Result<(ClusterCa, Identity, BTreeMap<NodeName, Identity>), ClusterError> {
    let cluster = layout.cluster();
    let pki =
        |e: stead_agent::pki::PkiError| ClusterError::Pki { cluster: cluster.clone(), source: Box::new(e) };
    let now = SystemTime::now().into();
    let ca = match (read_text(&layout.pki().join("ca.pem"))?, read_text(&layout.pki().join("ca.key"))?) {
        (Some(certificate), Some(key)) => ClusterCa::from_pem(cluster, &certificate, &key).map_err(pki)?,
        _ => ClusterCa::create(cluster, now).map_err(pki)?,
    };
    let usable = |i: &Identity| i.ca_pem == ca.certificate_pem() && !renewal_due(&i.certificate_pem, now);
    let kept = |path: &Path| files::read_json::<Identity>(path).ok().flatten().filter(usable);
    let operator = match kept(&layout.pki().join("operator.json")) {
        Some(i) => i,
        None => ca.issue_client("operator", now).map_err(pki)?,
    };
    let mut identities = BTreeMap::new();
    for node in record.spec.resolve() {
        let identity = match kept(&layout.node(&node.name).join("identity.json")) {
            Some(i) => i,
            None => {
                let addresses: Vec<IpAddr> =
                    node.nics.iter().flat_map(|n| n.addresses.iter().map(|a| a.addr())).collect();
                ca.issue_node(&node.name, &addresses, now).map_err(pki)?
            }
        };
        identities.insert(node.name, identity);
    }
    Ok((ca, operator, identities))
}

/// The operator's identity of a cluster that is there.
///
/// # Errors
/// It was never written: the first `up` was cut short.
pub fn operator_identity(layout: &Layout) -> Result<Identity, ClusterError> {
    files::read_json(&layout.pki().join("operator.json"))?.ok_or_else(|| {
        ClusterError::NotUp(format!("cluster {} was never brought up completely", layout.cluster()))
    })
}

fn read_text(path: &Path) -> Result<Option<String>, ClusterError> {
    match std::fs::read_to_string(path) {
        Ok(t) => Ok(Some(t)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ClusterError::file("read", path)(e)),
    }
}
