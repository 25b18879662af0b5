//! Runs the engine manager beside an engine and obeys lines on stdin, each answered by a line of JSON on stdout.
//!
//! `engine-driver NODE SOCKET ENGINE-SPEC-JSON`; lines are `status`, `join-token MEMBER`, `join TOKEN`,
//! `trust-token CLIENT`, `remove MEMBER`, `remove-force MEMBER`, `instances`. For the tests on real engines, and for
//! looking at an engine by hand without the rest of a node.

use serde_json::{Value, json};
use stead_model::{NodeName, NodeSpec, agent::Token, node::EngineSpec};
use stead_node::{
    engine::{EngineError, Manager},
    handle::Handle,
    reaper::Reaper,
};
use tokio::sync::mpsc;

type Failure = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let (Some(node), Some(socket), Some(spec)) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: engine-driver NODE SOCKET ENGINE-SPEC-JSON".into());
    };
    let node = NodeName::new(node)?;
    let node_spec: NodeSpec =
        serde_json::from_value(json!({ "schema": 1, "cluster": "driver", "name": node }))?;
    let handle = Handle::new(
        node_spec,
        std::time::Instant::now(),
        "driver".into(),
        std::env::temp_dir(),
        Reaper::start(false)?,
    );
    let spec: EngineSpec = serde_json::from_str(&spec)?;
    let manager = Manager::new(spec, node, handle, socket.into());
    let running = tokio::spawn(std::sync::Arc::clone(&manager).run());
    let (sender, mut lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = lines.recv().await {
        let answer = match obey(&manager, &line).await {
            Ok(value) => json!({ "ok": value }),
            Err(e) => json!({ "error": told(&*e) }),
        };
        println!("{answer}");
    }
    running.abort();
    Ok(())
}

async fn obey(manager: &Manager, line: &str) -> Result<Value, Failure> {
    let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
    let name = || NodeName::new(argument);
    let token = |t: Result<Token, EngineError>| t.map(|t| Value::from(t.token));
    Ok(match verb {
        "status" => serde_json::to_value(manager.status())?,
        "join-token" => token(manager.join_token(&name()?).await)?,
        "join" => serde_json::to_value(manager.join(&Token { token: argument.to_owned() }).await?)?,
        "trust-token" => token(manager.trust_token(argument).await)?,
        "remove" => manager.remove_member(&name()?, false).await.map(|()| Value::Null)?,
        "remove-force" => manager.remove_member(&name()?, true).await.map(|()| Value::Null)?,
        "instances" => serde_json::to_value(manager.instances().await?)?,
        other => return Err(format!("{other:?} is no verb").into()),
    })
}

fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
