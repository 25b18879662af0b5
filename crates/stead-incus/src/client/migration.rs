//! Copies of instances between servers that do not know each other.

use super::{Client, OnServer, Operation, TRANSFER_TIMEOUT};
use crate::{
    Error,
    requests::{
        instances::NewInstance,
        migration::{self, CopyOptions, Mode, Peer},
    },
    transport::WebSocket,
    types::{Instance, InstanceKind, OperationStatus},
};
use futures_util::{SinkExt, StreamExt};
use std::collections::BTreeMap;

/// Volatile settings that a copy on another server needs: the image it was created from, and the id mapping of its files.
const KEPT: &[&str] = &["volatile.base_image", "volatile.last_state.idmap"];

impl NewInstance {
    /// A new instance with the settings, devices and profiles of another one, for a copy on another server.
    pub fn like(instance: &Instance) -> Self {
        let own = |key: &str| !key.starts_with("volatile.") || KEPT.contains(&key);
        Self {
            name: instance.name.clone(),
            kind: match instance.kind.as_str() {
                "virtual-machine" => InstanceKind::VirtualMachine,
                _ => InstanceKind::Container,
            },
            config: instance.config.clone().into_iter().filter(|(key, _)| own(key)).collect(),
            devices: instance.devices.clone(),
            profiles: instance.profiles.clone(),
            description: instance.description.clone(),
            ephemeral: instance.ephemeral,
            ..Self::default()
        }
    }
}

impl Client {
    /// Copies an instance from another server (or from another project or member of this one) to this server, as `new`
    /// ([`NewInstance::like`]; its source is ignored), on `target`. A failed copy changes neither side, except that a
    /// partial copy may be left here.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server that must accept the connection does not listen on the network.
    #[expect(
        clippy::too_many_arguments,
        reason = "source, target, instance and options; every call needs each"
    )]
    pub async fn copy_instance(
        &self,
        project: &str,
        target: Option<&str>,
        new: &NewInstance,
        from: OnServer<'_>,
        instance: &str,
        mode: Mode,
        options: CopyOptions,
    ) -> Result<(), Error> {
        let source = from.client.instance(from.project, instance).await?.value;
        let base = source.config.get("volatile.base_image").map(String::as_str);
        let receive = |peer: Option<&Peer>| {
            migration::receive(project, target, new, &source.architecture, base, options, peer)
        };
        match mode {
            Mode::Pull => {
                let send = migration::send(from.project, instance, options, None);
                let (sending, status) = from.client.begin_operation(&send).await?;
                let mut first = None;
                for peer in peers(from.client, &sending, &status).await? {
                    let receiving = match self.begin_operation(&receive(Some(&peer))).await {
                        Ok((operation, _)) => operation,
                        Err(e) => {
                            let _ = from.client.cancel(&sending).await;
                            return Err(first.unwrap_or(e));
                        }
                    };
                    match self.wait(&receiving, TRANSFER_TIMEOUT).await {
                        Ok(_) => return Ok(()),
                        // The target may not reach that address: try the next one.
                        Err(e @ Error::Operation { .. }) => first = Some(first.unwrap_or(e)),
                        Err(e) => {
                            let _ = from.client.cancel(&sending).await;
                            return Err(e);
                        }
                    }
                }
                let _ = from.client.cancel(&sending).await;
                Err(first.unwrap_or_else(|| super::silent(from.client)))
            }
            Mode::Push => {
                let (receiving, status) = self.begin_operation(&receive(None)).await?;
                let mut first = None;
                for peer in peers(self, &receiving, &status).await? {
                    let send = migration::send(from.project, instance, options, Some(&peer));
                    // For a push, the source reports an unreachable address at once.
                    match from.client.begin_operation(&send).await {
                        Ok((sending, _)) => {
                            let (sent, received) = tokio::join!(
                                from.client.wait(&sending, TRANSFER_TIMEOUT),
                                self.wait(&receiving, TRANSFER_TIMEOUT)
                            );
                            received?;
                            // The copy is complete; the source may have forgotten its operation by now.
                            return match sent {
                                Err(Error::OutcomeUnknown { .. }) | Ok(_) => Ok(()),
                                Err(e) => Err(e),
                            };
                        }
                        Err(e) => first = Some(first.unwrap_or(e)),
                    }
                }
                let _ = self.cancel(&receiving).await;
                Err(first.unwrap_or_else(|| super::silent(self)))
            }
            Mode::Relay => {
                let send = migration::send(from.project, instance, options, None);
                let (sending, sender) = from.client.begin_operation(&send).await?;
                let (receiving, receiver) = match self.begin_operation(&receive(None)).await {
                    Ok(begun) => begun,
                    Err(e) => {
                        let _ = from.client.cancel(&sending).await;
                        return Err(e);
                    }
                };
                let relayed = async {
                    let relay = self.relay(&receiving, &receiver, from.client, &sending, &sender);
                    tokio::pin!(relay);
                    let arrive = self.wait(&receiving, TRANSFER_TIMEOUT);
                    tokio::pin!(arrive);
                    tokio::select! {
                        done = &mut arrive => done.map(drop),
                        relayed = &mut relay => {
                            relayed?;
                            arrive.await.map(drop)
                        }
                    }
                };
                let done = relayed.await;
                if done.is_err() {
                    // Either side may still wait for a stream that will not come.
                    let (_, _) = tokio::join!(from.client.cancel(&sending), self.cancel(&receiving));
                }
                done
            }
        }
    }

    /// Relays all messages between the websockets of two operations until both sides have closed them.
    async fn relay(
        &self,
        receiving: &Operation,
        receiver: &OperationStatus,
        from: &Client,
        sending: &Operation,
        sender: &OperationStatus,
    ) -> Result<(), Error> {
        let (ours, theirs) = (receiver.secrets(), sender.secrets());
        let mut pairs = Vec::new();
        // Control first: the server begins when it is connected.
        let names =
            std::iter::once("control").chain(ours.keys().map(String::as_str).filter(|n| *n != "control"));
        for name in names {
            let (Some(ours), Some(theirs)) = (ours.get(name), theirs.get(name)) else {
                return Err(Error::Refused {
                    subject: receiving.request.clone(),
                    why: "expects a stream that the other server does not send",
                });
            };
            let source = from.operation_websocket(sending, theirs).await?;
            let target = self.operation_websocket(receiving, ours).await?;
            pairs.push(carry(source, target));
        }
        futures_util::future::join_all(pairs).await;
        Ok(())
    }
}

/// Relays messages both ways until one side ends, then closes the other.
async fn carry(source: WebSocket, target: WebSocket) {
    let (mut to_source, mut from_source) = source.split();
    let (mut to_target, mut from_target) = target.split();
    let there = async {
        while let Some(Ok(message)) = from_source.next().await {
            if to_target.send(message).await.is_err() {
                break;
            }
        }
    };
    let back = async {
        while let Some(Ok(message)) = from_target.next().await {
            if to_source.send(message).await.is_err() {
                break;
            }
        }
    };
    tokio::select! { () = there => {}, () = back => {} }
    let _ = to_target.close().await;
    let _ = to_source.close().await;
}

/// The operation as the other server must address it, once for each address of `client`'s server.
async fn peers(client: &Client, operation: &Operation, status: &OperationStatus) -> Result<Vec<Peer>, Error> {
    let server = client.server_info().await?;
    let environment = &server.environment;
    let path = operation.path.split('?').next().unwrap_or_default();
    let secrets: BTreeMap<String, String> = status.secrets();
    let peer = |address: &String| Peer {
        operation: format!("https://{address}{path}"),
        certificate: environment.certificate.clone(),
        secrets: secrets.clone(),
    };
    Ok(environment.addresses.iter().map(peer).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dialect, Endpoint};
    use std::{
        path::{Path, PathBuf},
        sync::{Arc, Mutex},
    };
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

    /// A server that answers each request with what `answer` makes of its first line, and notes the line.
    fn server(
        directory: &Path,
        name: &str,
        answer: fn(&str) -> String,
    ) -> (PathBuf, Arc<Mutex<Vec<String>>>) {
        let (path, lines) = (directory.join(name), Arc::new(Mutex::new(Vec::new())));
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let noted = Arc::clone(&lines);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                let (mut head, mut length) = (Vec::new(), 0);
                loop {
                    let mut line = String::new();
                    stream.read_line(&mut line).await.unwrap();
                    if line.trim().is_empty() {
                        break;
                    }
                    if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                        length = n.trim().parse().unwrap();
                    }
                    head.push(line.trim().to_owned());
                }
                stream.read_exact(&mut vec![0; length]).await.unwrap();
                let Some(line) = head.first().map(|l| l.trim_end_matches(" HTTP/1.1").to_owned()) else {
                    continue;
                };
                let body = answer(&line);
                noted.lock().unwrap().push(line);
                let status = if body.contains("\"error\"") { "400 Bad Request" } else { "200 OK" };
                let whole = format!(
                    "HTTP/1.1 {status}\r\nETag: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(whole.as_bytes()).await.unwrap();
            }
        });
        (path, lines)
    }

    /// Begins every operation that is asked for, and accepts no websocket.
    fn deaf(line: &str) -> String {
        let sync = |metadata: &str| format!(r#"{{"type":"sync","metadata":{metadata}}}"#);
        match line {
            "GET /1.0" => sync(
                r#"{"auth":"trusted","api_extensions":["container_push","container_exec_recording"],"environment":{"server":"incus"}}"#,
            ),
            l if l.starts_with("GET /1.0/instances/c1") => sync(r#"{"name":"c1","config":{}}"#),
            l if l.starts_with("POST") => {
                r#"{"type":"async","operation":"/1.0/operations/u","metadata":{"id":"u","status_code":103,"metadata":{"control":"s"}}}"#.into()
            }
            l if l.contains("/wait") => r#"{"type":"error","error":"not yet","error_code":503}"#.into(),
            l if l.contains("/websocket") => r#"{"type":"error","error":"no websocket","error_code":400}"#.into(),
            _ => sync("{}"),
        }
    }

    #[tokio::test]
    async fn a_relay_that_fails_cancels_both_operations() {
        let dir = tempfile::tempdir().unwrap();
        let (source, of_source) = server(dir.path(), "source", deaf);
        let (target, of_target) = server(dir.path(), "target", deaf);
        let client = |path: PathBuf| Client::new(Dialect::Incus, Endpoint::Unix(path)).unwrap();
        let (source, target) = (client(source), client(target));
        let new = NewInstance { name: "c2".into(), ..NewInstance::default() };
        let from = OnServer { client: &source, project: "default" };
        let options = CopyOptions::default();
        let copied = target.copy_instance("default", None, &new, from, "c1", Mode::Relay, options).await;
        assert!(copied.is_err());
        for lines in [of_source, of_target] {
            let lines = lines.lock().unwrap();
            assert!(lines.iter().any(|l| l == "DELETE /1.0/operations/u"), "{lines:?}");
        }
    }
}
