//! Certificates of a cluster: its CA, and the identities of the operator and of every node.

use crate::{ClusterError, Layout, Record, files};
use std::{collections::BTreeMap, fs, io, net::IpAddr, path::Path, time::SystemTime};
use stead_agent::{
    Identity,
    pki::{ClusterCa, PkiError, renewal_due},
};
use stead_model::NodeName;

/// All certificates of a cluster.
pub(crate) struct Pki {
    ca: ClusterCa,
    pub(crate) operator: Identity,
    pub(crate) nodes: BTreeMap<NodeName, Identity>,
}

impl Pki {
    /// Loads them from the files. Missing ones, and those due for renewal, are made now but not written yet.
    ///
    /// # Errors
    /// A file cannot be read, or a certificate cannot be made.
    pub(crate) fn load(layout: &Layout, record: &Record) -> Result<Self, ClusterError> {
        let cluster = layout.cluster();
        let failed = |e: PkiError| ClusterError::Pki { cluster: cluster.clone(), source: Box::new(e) };
        let now = SystemTime::now().into();
        let ca = match (read_text(&layout.pki().join("ca.pem"))?, read_text(&layout.pki().join("ca.key"))?) {
            (Some(certificate), Some(key)) => {
                ClusterCa::from_pem(cluster, &certificate, &key).map_err(failed)?
            }
            _ => ClusterCa::create(cluster, now).map_err(failed)?,
        };
        let usable = |i: &Identity| i.ca_pem == ca.certificate_pem() && !renewal_due(&i.certificate_pem, now);
        let kept = |path: &Path| files::read_json::<Identity>(path).ok().flatten().filter(usable);
        let operator = match kept(&layout.pki().join("operator.json")) {
            Some(i) => i,
            None => ca.issue_client("operator", now).map_err(failed)?,
        };
        let mut nodes = BTreeMap::new();
        for node in record.spec.resolve() {
            let identity = match kept(&layout.node(&node.name).join("identity.json")) {
                Some(i) => i,
                None => {
                    let addresses: Vec<IpAddr> =
                        node.nics.iter().flat_map(|n| n.addresses.iter().map(|a| a.addr())).collect();
                    ca.issue_node(&node.name, &addresses, now).map_err(failed)?
                }
            };
            nodes.insert(node.name, identity);
        }
        Ok(Self { ca, operator, nodes })
    }

    /// Writes those that have changed.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn save(&self, layout: &Layout) -> Result<(), ClusterError> {
        files::private_dir(&layout.pki())?;
        files::write(&layout.pki().join("ca.pem"), self.ca.certificate_pem().as_bytes())?;
        files::write(&layout.pki().join("ca.key"), self.ca.key_pem().as_bytes())?;
        files::write_json(&layout.pki().join("operator.json"), &self.operator)?;
        for (name, identity) in &self.nodes {
            files::private_dir(&layout.node(name))?;
            files::write_json(&layout.node(name).join("identity.json"), identity)?;
        }
        Ok(())
    }
}

/// The operator's identity of an existing cluster.
///
/// # Errors
/// It was never written, because the first `up` was interrupted.
pub(crate) fn operator(layout: &Layout) -> Result<Identity, ClusterError> {
    files::read_json(&layout.pki().join("operator.json"))?.ok_or_else(|| {
        ClusterError::NotUp(format!("cluster {} was never brought up completely", layout.cluster()))
    })
}

fn read_text(path: &Path) -> Result<Option<String>, ClusterError> {
    match fs::read_to_string(path) {
        Ok(t) => Ok(Some(t)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ClusterError::file("read", path)(e)),
    }
}
