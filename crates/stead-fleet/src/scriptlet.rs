//! The placement scriptlet on a server: which form it can run, and its installation.
//!
//! Owns the server's setting and who wrote the scriptlet in it. Does not own the text: that is `stead_placement::scriptlet`.

use crate::{
    facts::{self, FactsError},
    snapshot::snapshot,
};
use std::time::Duration;
use stead_incus::{Client, Error, Feature, requests, types::Config};
use stead_model::{Failure, FailureKind};
use stead_placement::{
    Policy,
    scriptlet::{self, View},
};

/// The server's setting.
const KEY: &str = "instances.placement.scriptlet";
/// The server may have to pass the setting on to every member.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Why a scriptlet was not made, installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum ScriptletError {
    /// The cluster could not be observed.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// The server does not support scriptlets.
    #[error("the server cannot place instances by a scriptlet")]
    Cannot(#[source] Box<Error>),
    /// Stead did not write the scriptlet on the server.
    #[error("the server has a placement scriptlet that stead did not write")]
    Foreign,
    /// A request failed.
    #[error("cannot {what}")]
    Ask {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<Error>,
    },
}

impl Failure for ScriptletError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Facts(source) => source.failure_kind(),
            Self::Cannot(_) | Self::Foreign => FailureKind::Failed,
            Self::Ask { source, .. } => source.failure_kind(),
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            Self::Facts(source) => source.hint(),
            Self::Cannot(_) => Some("`stead fleet place` finds members for new instances from here".into()),
            Self::Foreign => Some("--force replaces or removes it".into()),
            Self::Ask { source, .. } => source.hint(),
        }
    }
}

fn asking(what: &'static str) -> impl Fn(Error) -> ScriptletError {
    move |e| ScriptletError::Ask { what, source: Box::new(e) }
}

/// The scriptlet of a policy for a cluster, with the sizes of its members in it.
///
/// # Errors
/// [`ScriptletError::Cannot`] when the server does not support scriptlets.
pub async fn generate(client: &Client, policy: &Policy) -> Result<String, ScriptletError> {
    able(client).await?;
    let facts = facts::gather(client, facts::Asking::QUIETLY).await?;
    let server = client.server_info().await.map_err(asking("ask the server for its API extensions"))?;
    let view = match server.has(scriptlet::INSTANCES_EXTENSION) {
        true => View::Instances,
        false => View::MeasuredOnly,
    };
    Ok(scriptlet::generate(policy, Some(&snapshot(&facts)), view))
}

/// Installs a scriptlet; returns whether the setting was changed, since the same text is not sent twice. `force` replaces one
/// that Stead did not write.
///
/// # Errors
/// [`ScriptletError`], also when the server refuses the text.
pub async fn install(client: &Client, text: &str, force: bool) -> Result<bool, ScriptletError> {
    set(client, text, force).await
}

/// Removes the scriptlet; returns whether there was one. `force` removes one that Stead did not write.
///
/// # Errors
/// [`ScriptletError`].
pub async fn remove(client: &Client, force: bool) -> Result<bool, ScriptletError> {
    set(client, "", force).await
}

async fn able(client: &Client) -> Result<(), ScriptletError> {
    client.require(Feature::PlacementScriptlet).await.map_err(|e| match e.is_missing_extension() {
        true => ScriptletError::Cannot(Box::new(e)),
        false => asking("ask the server for its API extensions")(e),
    })
}

async fn set(client: &Client, text: &str, force: bool) -> Result<bool, ScriptletError> {
    able(client).await?;
    let server = client.server().await.map_err(asking("ask the server for its settings"))?.value;
    let there = server.config.get(KEY).map_or("", String::as_str);
    if there == text {
        return Ok(false);
    }
    if !there.is_empty() && !there.starts_with(scriptlet::HEAD) && !force {
        return Err(ScriptletError::Foreign);
    }
    let config = Config::from([(KEY.to_owned(), text.to_owned())]);
    client
        .run(&requests::server::patch_config(&config), TIMEOUT)
        .await
        .map_err(asking("set the server's placement scriptlet"))?;
    Ok(true)
}
