//! Runs the engine manager beside an engine and obeys lines on stdin, each answered by a line of JSON on stdout.
//!
//! `engine-driver NODE ENGINE-SPEC-JSON`; lines are `status`, `join-token MEMBER`, `join TOKEN`, `access
//! ACCESS-REQUEST-JSON`, `remove MEMBER`, `remove-force MEMBER`, `instances`. For tests on real engines, and for
//! inspecting an engine by hand without the rest of a node.

use serde_json::{Value, json};
use std::sync::Arc;
use stead_model::{
    NodeName, NodeSpec,
    agent::{JoinRequest, JoinTokenRequest, RemoveMemberRequest, Token},
    node::EngineSpec,
};
use stead_node::{
    engine::{self, Engine},
    handle::Handle,
    reaper::Reaper,
};
use stead_os::chain;
use tokio::sync::mpsc;

type Failure = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let (Some(node), Some(spec)) = (arguments.next(), arguments.next()) else {
        return Err("usage: engine-driver NODE ENGINE-SPEC-JSON".into());
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
    let engine = engine::of(spec, &node, &handle).ok_or("the spec names no engine")?;
    Arc::clone(&engine).prepare().await;
    let running = tokio::spawn(Arc::clone(&engine).settle());
    let (sender, mut lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = lines.recv().await {
        let answer = match obey(&*engine, &line).await {
            Ok(value) => json!({ "ok": value }),
            Err(e) => json!({ "error": chain(&*e) }),
        };
        println!("{answer}");
    }
    running.abort();
    Ok(())
}

async fn obey(engine: &dyn Engine, line: &str) -> Result<Value, Failure> {
    let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
    let member = || NodeName::new(argument);
    let remove = |force| Ok::<_, Failure>(RemoveMemberRequest { member: member()?, address: None, force });
    Ok(match verb {
        "status" => serde_json::to_value(engine.status())?,
        "join-token" => {
            engine.join_token(&JoinTokenRequest { member: member()?, address: None }).await?.token.into()
        }
        "join" => {
            let token = Token { token: argument.to_owned() };
            serde_json::to_value(engine.join(&JoinRequest { token }).await?)?
        }
        "access" => serde_json::to_value(engine.access(&serde_json::from_str(argument)?).await?)?,
        "remove" => engine.remove(&remove(false)?).await.map(|()| Value::Null)?,
        "remove-force" => engine.remove(&remove(true)?).await.map(|()| Value::Null)?,
        "instances" => serde_json::to_value(engine.workloads().await?)?,
        other => return Err(format!("unknown verb {other:?}").into()),
    })
}
