//! `up` and `scale`: prepare, observe, plan, check and execute.

use crate::{
    ClusterError, Events, Host, Plan, Record, execute, machines, observe,
    prepare::{self, prepare},
    site::Site,
};
use serde::Serialize;
use std::time::Instant;
use stead_model::{ClusterName, cluster::Nodes};

pub use prepare::UpRequest;

/// The result of `up`.
#[derive(Debug, Clone, Serialize)]
pub struct UpReport {
    /// The executed plan.
    pub plan: Plan,
    /// Later plans, made because the cluster changed meanwhile.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub later: Vec<Plan>,
    /// Its duration in seconds.
    pub seconds: f64,
}

/// The plan for this request; only the image store's layer cache changes.
///
/// # Errors
/// The request is impossible, or the state cannot be read.
pub async fn dry_run(host: &Host, request: UpRequest, events: &Events) -> Result<Plan, ClusterError> {
    let prepared = prepare(host, request, events).await?;
    let observed =
        observe::settled(&prepared.layout, &prepared.record, &prepared.pki.operator, events).await?;
    execute::planned(&prepared.desired, &observed)
}

/// Brings the cluster to the requested state, from any state.
///
/// # Errors
/// The first failure of each node; running nodes stay up, and another `up` continues from there.
pub async fn up(host: &Host, request: UpRequest, events: &Events) -> Result<UpReport, ClusterError> {
    let began = Instant::now();
    let layout = host.layout(&request.spec.name);
    let _lock = layout.take_lock()?;
    // First finish what an interrupted command began to end, so that the plan does not rely on ending machines.
    machines::finish_ends(&layout).await?;
    let prepared = prepare(host, request, events).await?;
    let desired = prepared.desired.clone();
    let mut site = Site::new(host, prepared, events);
    let (plan, later) = execute::converge(&mut site, &desired, events).await?;
    Ok(UpReport { plan, later, seconds: began.elapsed().as_secs_f64() })
}

/// Changes the number of nodes and brings the cluster to it.
///
/// # Errors
/// As [`up`]; or the nodes are listed by name and more are requested.
pub async fn scale(
    host: &Host,
    cluster: &ClusterName,
    count: u32,
    events: &Events,
) -> Result<UpReport, ClusterError> {
    let record = Record::require(&host.layout(cluster))?;
    let mut spec = record.spec;
    spec.nodes = match spec.nodes {
        Nodes::Count(_) => Nodes::Count(count),
        Nodes::List(mut list) if (count as usize) <= list.len() => {
            list.truncate(count as usize);
            Nodes::List(list)
        }
        Nodes::List(list) => {
            return Err(ClusterError::Refused(format!(
                "cluster {cluster} lists its {} nodes by name, so it cannot be scaled to {count}: add nodes to its file and run `stead up FILE`",
                list.len()
            )));
        }
    };
    spec.check().map_err(|(key, why)| ClusterError::Refused(format!("{key}: {why}")))?;
    up(host, UpRequest { spec, base_dir: record.base_dir }, events).await
}
