//! The placement scriptlet on a server: which one it can run, and putting it there.
//!
//! Owns the server's setting and whose scriptlet is in it. Does not own the text: that is `stead_placement::scriptlet`.

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
/// Setting it may have to be told to every member.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Why there is no scriptlet.
#[derive(Debug, thiserror::Error)]
pub enum ScriptletError {
    /// The cluster cannot be looked at.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// The server takes none.
    #[error("the server cannot place instances by a scriptlet")]
    Cannot(#[source] Box<Error>),
    /// Somebody else's is there.
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
/// [`ScriptletError::Cannot`] when the server takes none.
pub async fn generate(client: &Client, policy: &Policy) -> Result<String, ScriptletError> {
    able(client).await?;
    let facts = facts::gather(client).await?;
    let server = client.server_info().await.map_err(asking("ask the server what it can do"))?;
    let view = match server.has(scriptlet::INSTANCES_EXTENSION) {
        true => View::Instances,
        false => View::MeasuredOnly,
    };
    Ok(scriptlet::generate(policy, Some(&snapshot(&facts)), view))
}

/// Whether the setting was changed: the same text is not sent twice. `force`: in place of somebody else's too.
///
/// # Errors
/// [`ScriptletError`]; that the server does not take the text too.
pub async fn install(client: &Client, text: &str, force: bool) -> Result<bool, ScriptletError> {
    set(client, text, force).await
}

/// Takes the scriptlet away; whether there was one. `force`: somebody else's too.
///
/// # Errors
/// [`ScriptletError`].
pub async fn remove(client: &Client, force: bool) -> Result<bool, ScriptletError> {
    set(client, "", force).await
}

async fn able(client: &Client) -> Result<(), ScriptletError> {
    client.require(Feature::PlacementScriptlet).await.map_err(|e| match e.is_missing_extension() {
        true => ScriptletError::Cannot(Box::new(e)),
        false => asking("ask the server what it can do")(e),
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
