//! The fake's background work: each operation is a task that reports progress, waits for its configured delay, and then
//! changes the world in one step.

use super::{Shared, model::World};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::watch;

/// How long an operation is remembered after its end, as by a real server.
pub(super) const REMEMBERED: Duration = Duration::from_secs(5);

/// The effect of an operation at its end; an error is its failure.
pub(super) type Effect = Box<dyn FnOnce(&mut World) -> Result<Value, String> + Send>;

/// A new operation.
pub(super) struct Work {
    pub description: &'static str,
    pub project: String,
    /// Paths of the resources, by kind.
    pub resources: BTreeMap<&'static str, Vec<String>>,
    /// Instances it works on; other operations on them are refused meanwhile.
    pub claims: Vec<(String, String)>,
    pub may_cancel: bool,
    pub effect: Effect,
    /// Lifecycle actions reported after success, each with the path of its object.
    pub tells: Vec<(&'static str, String)>,
}

pub(super) struct Running {
    pub state: watch::Sender<Value>,
    pub project: String,
    pub claims: Vec<(String, String)>,
    pub cancel: Option<watch::Sender<bool>>,
    pub task: Option<tokio::task::JoinHandle<()>>,
}

/// Whether an operation has ended.
pub(super) fn ended(operation: &Value) -> bool {
    operation["status_code"].as_u64().is_some_and(|code| code >= 200)
}

/// Starts an operation and returns its first state.
pub(super) fn begin(shared: &Arc<Shared>, work: Work) -> Value {
    let mut inner = shared.lock();
    let id = inner.world.uuid();
    let now = inner.world.now();
    let location = match inner.world.members.keys().next() {
        Some(first) if inner.world.clustered() => first.clone(),
        _ => "none".into(),
    };
    let operation = json!({
        "id": id, "class": "task", "description": work.description, "created_at": now, "updated_at": now,
        "status": "Running", "status_code": 103, "resources": work.resources, "metadata": {},
        "may_cancel": work.may_cancel, "err": "", "location": location,
    });
    let busy = work
        .claims
        .iter()
        .find(|claim| {
            inner.operations.values().any(|o| !ended(&o.state.borrow()) && o.claims.contains(claim))
        })
        .map(|(_, name)| format!("Instance {name:?} is busy running another operation"));
    let (delay, failure) = shared.faults.for_operation(work.description, &work.claims);
    let failure = busy.or(failure);
    let (state, _) = watch::channel(operation.clone());
    let (cancel, mut cancelled) = watch::channel(false);
    inner.operations.insert(
        id.clone(),
        Running {
            state: state.clone(),
            project: work.project.clone(),
            claims: work.claims.clone(),
            cancel: work.may_cancel.then_some(cancel.clone()),
            task: None,
        },
    );
    shared.tell_operation(&work.project, &operation);
    let task = {
        let (shared, id) = (Arc::clone(shared), id.clone());
        tokio::spawn(async move {
            // Keeps the channel open for operations that cannot be cancelled.
            let _cancel = cancel;
            let outcome = if let Some(failure) = failure {
                Err((400, failure))
            } else {
                if !delay.is_zero() {
                    progress(&shared, &work.project, &state);
                }
                tokio::select! {
                    () = tokio::time::sleep(delay) => {
                        let mut inner = shared.lock();
                        (work.effect)(&mut inner.world).map_err(|e| (400, e))
                    }
                    _ = cancelled.wait_for(|c| *c) => Err((401, "Operation cancelled".to_owned())),
                }
            };
            let succeeded = outcome.is_ok();
            let now = shared.lock().world.now();
            state.send_modify(|o| {
                o["updated_at"] = now.into();
                match outcome {
                    Ok(metadata) => {
                        (o["status"], o["status_code"]) = ("Success".into(), 200.into());
                        o["metadata"] = metadata;
                    }
                    Err((code, why)) => {
                        let status = if code == 401 { "Cancelled" } else { "Failure" };
                        (o["status"], o["status_code"], o["err"]) = (status.into(), code.into(), why.into());
                    }
                }
            });
            let end = state.borrow().clone();
            if succeeded {
                for (action, source) in &work.tells {
                    shared.tell_lifecycle(&work.project, action, source);
                }
            }
            shared.tell_operation(&work.project, &end);
            tokio::time::sleep(REMEMBERED).await;
            shared.lock().operations.remove(&id);
        })
    };
    if let Some(running) = inner.operations.get_mut(&id) {
        running.task = Some(task);
    }
    operation
}

/// Reports once that it is half done.
fn progress(shared: &Shared, project: &str, state: &watch::Sender<Value>) {
    state.send_modify(|o| {
        o["metadata"] = json!({
            "fake_progress": "Fake: 50% (1MB/s)",
            "progress": { "stage": "fake", "percent": "50", "speed": "1000000" },
        });
    });
    let now = state.borrow().clone();
    shared.tell_operation(project, &now);
}
