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
                        Err(e) => return Err(e),
                    }
                }
                let _ = from.client.cancel(&sending).await;
                Err(first.unwrap_or_else(|| silent(from.client)))
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
                Err(first.unwrap_or_else(|| silent(self)))
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

fn silent(client: &Client) -> Error {
    Error::Refused { subject: client.endpoint().to_string(), why: "does not listen on the network" }
}
