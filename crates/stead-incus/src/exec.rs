//! Commands in instances, with their streams: one websocket each for standard input, output and error, or one for a
//! terminal, and one for control. The control websocket is the command's lease: when it breaks, the server kills the
//! command.

use crate::{
    Client, Error, Operation,
    requests::exec::{self, Command},
    transport::WebSocket,
    types::OperationStatus,
};
use bytes::Bytes;
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::Mutex;
use tokio_tungstenite::tungstenite::{self, Message};

/// Standard input is sent in pieces of this size.
const CHUNK: usize = 32 * 1024;

/// A running command. Different tasks can use its parts. Standard output and error must be read, or the command blocks.
#[derive(Debug)]
pub struct Exec {
    /// Standard input, or the terminal's.
    pub stdin: ExecInput,
    /// Standard output, or the terminal's.
    pub stdout: ExecOutput,
    /// Standard error; none with a terminal.
    pub stderr: Option<ExecOutput>,
    /// Signals, and the terminal's size.
    pub control: ExecControl,
    /// Waits for the command's exit code.
    pub exit: ExecExit,
}

/// Writes to a command.
#[derive(Debug)]
pub struct ExecInput {
    sink: Arc<Mutex<SplitSink<WebSocket, Message>>>,
    request: Arc<str>,
}

/// Reads from a command. LXD 5.0 may lose the last output of a command in a terminal, because it stops reading the
/// terminal when the command ends; it reads pipes to their end.
#[derive(Debug)]
pub struct ExecOutput {
    stream: SplitStream<WebSocket>,
    /// Set for a terminal: the server waits until the other direction of the connection is closed too.
    hang_up: Option<Arc<Mutex<SplitSink<WebSocket, Message>>>>,
    ended: bool,
    request: Arc<str>,
}

/// Sends signals and terminal sizes to a command. The server kills the command if this is dropped before it ends.
#[derive(Debug)]
pub struct ExecControl {
    socket: WebSocket,
    request: Arc<str>,
}

/// Waits for a command.
#[derive(Debug)]
pub struct ExecExit {
    client: Client,
    operation: Operation,
}

/// The result of a command that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecDone {
    /// Exit code as in a shell: above 128 a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Client {
    /// Runs a command in an instance, with its streams.
    pub async fn exec(&self, project: &str, instance: &str, command: &Command) -> Result<Exec, Error> {
        let (operation, status) = self.begin_operation(&exec::begin(project, instance, command)).await?;
        let request: Arc<str> = operation.request.as_str().into();
        let secrets = status.secrets();
        // Control comes first: without it, old servers mistake the other sockets for a client that has gone away.
        let control = ExecControl {
            socket: self.stream(&operation, &secrets, "control").await?,
            request: Arc::clone(&request),
        };
        let output =
            |stream| ExecOutput { stream, hang_up: None, ended: false, request: Arc::clone(&request) };
        let (sink, stream) = self.stream(&operation, &secrets, "0").await?.split();
        let sink = Arc::new(Mutex::new(sink));
        let stdin = ExecInput { sink: Arc::clone(&sink), request: Arc::clone(&request) };
        let (stdout, stderr) = if command.terminal.is_some() {
            (ExecOutput { hang_up: Some(sink), ..output(stream) }, None)
        } else {
            (
                output(self.stream(&operation, &secrets, "1").await?.split().1),
                Some(output(self.stream(&operation, &secrets, "2").await?.split().1)),
            )
        };
        let exit = ExecExit { client: self.clone(), operation: operation.clone() };
        Ok(Exec { stdin, stdout, stderr, control, exit })
    }

    async fn stream(
        &self,
        operation: &Operation,
        secrets: &BTreeMap<String, String>,
        name: &str,
    ) -> Result<WebSocket, Error> {
        let secret = secrets.get(name).ok_or_else(|| Error::Refused {
            subject: operation.request.clone(),
            why: "got an answer without the websockets of a command",
        })?;
        self.operation_websocket(operation, secret).await
    }

    /// Runs a command to its end with `input` on standard input. `timeout` limits the whole run, `limit_bytes` the
    /// length of each output stream.
    ///
    /// # Errors
    /// [`Error::TooLong`] and [`Error::Timeout`]; in both cases the command is killed.
    pub async fn exec_to_end(
        &self,
        project: &str,
        instance: &str,
        command: &Command,
        input: &[u8],
        limit_bytes: usize,
        timeout: Duration,
    ) -> Result<ExecDone, Error> {
        let Exec { mut stdin, mut stdout, stderr, control, exit } =
            self.exec(project, instance, command).await?;
        let write = async {
            for piece in input.chunks(CHUNK) {
                // A command may close its standard input before it has read everything.
                if stdin.write(Bytes::copy_from_slice(piece)).await.is_err() {
                    return Ok(());
                }
            }
            let _ = stdin.close().await;
            Ok(())
        };
        let read_error = async {
            match stderr {
                Some(mut stderr) => stderr.read_to_end(limit_bytes).await,
                None => Ok(Vec::new()),
            }
        };
        let request = exit.operation.request.clone();
        let work = async {
            tokio::try_join!(exit.wait(timeout), stdout.read_to_end(limit_bytes), read_error, write)
        };
        let done = tokio::time::timeout(timeout, work).await;
        drop(control);
        let (code, stdout, stderr, ()) = done.map_err(|_| Error::Timeout { request, after: timeout })??;
        Ok(ExecDone { code, stdout, stderr })
    }
}

fn broke(request: &Arc<str>) -> impl FnOnce(tungstenite::Error) -> Error + '_ {
    move |source| Error::WebSocket { request: request.to_string(), source: Box::new(source) }
}

impl ExecInput {
    /// Writes to standard input. What a command no longer reads, because it has ended, is dropped.
    ///
    /// # Errors
    /// [`Error::WebSocket`]: the connection broke.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), Error> {
        self.sink.lock().await.send(Message::Binary(bytes)).await.map_err(broke(&self.request))
    }
    /// Ends the input; with a terminal, that hangs it up.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn close(&mut self) -> Result<(), Error> {
        // Both engines mark the end of a stream by a text message.
        self.sink.lock().await.send(Message::text("")).await.map_err(broke(&self.request))
    }
}

impl ExecOutput {
    /// The next piece of output; none at the end. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::WebSocket`]: the connection broke.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while !self.ended {
            match self.stream.next().await {
                Some(Ok(Message::Binary(bytes))) if bytes.is_empty() => {}
                Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                // A terminal's output ends with a closed connection and nothing else.
                Some(Ok(Message::Text(_) | Message::Close(_))) | None => self.ended = true,
                Some(Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed)) => {
                    self.ended = true;
                }
                Some(Err(tungstenite::Error::Protocol(
                    tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
                ))) => self.ended = true,
                Some(Err(source)) => return Err(broke(&self.request)(source)),
            }
        }
        if let Some(sink) = &self.hang_up {
            // The server may have closed it already.
            let _ = sink.lock().await.close().await;
            self.hang_up = None;
        }
        Ok(None)
    }
    async fn read_to_end(&mut self, limit_bytes: usize) -> Result<Vec<u8>, Error> {
        let mut all = Vec::new();
        while let Some(piece) = self.next().await? {
            if all.len() + piece.len() > limit_bytes {
                return Err(Error::TooLong {
                    request: self.request.to_string(),
                    limit_bytes: limit_bytes as u64,
                });
            }
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }
}

impl ExecControl {
    /// Sets the terminal's size.
    ///
    /// # Errors
    /// [`Error::WebSocket`].
    pub async fn resize(&mut self, columns: u16, rows: u16) -> Result<(), Error> {
        let args = json!({ "width": columns.to_string(), "height": rows.to_string() });
        self.send(json!({ "command": "window-resize", "args": args })).await
    }
    /// Sends a signal (its number) to the command.
    ///
    /// # Errors
    /// [`Error::WebSocket`].
    pub async fn signal(&mut self, number: u8) -> Result<(), Error> {
        self.send(json!({ "command": "signal", "signal": number })).await
    }
    async fn send(&mut self, message: serde_json::Value) -> Result<(), Error> {
        self.socket.send(Message::text(message.to_string())).await.map_err(broke(&self.request))
    }
}

impl ExecExit {
    /// Waits for the command to end; returns its exit code. The server remembers it for only five seconds: wait while
    /// the output is read, not afterwards.
    ///
    /// # Errors
    /// As [`Client::wait`]; [`Error::Operation`] when the command could not be run at all.
    pub async fn wait(self, timeout: Duration) -> Result<i32, Error> {
        let status = self.client.wait(&self.operation, timeout).await?;
        exit_code(&status).ok_or_else(|| Error::Refused {
            subject: self.operation.request.clone(),
            why: "ended without an exit code",
        })
    }
}

fn exit_code(status: &OperationStatus) -> Option<i32> {
    status.metadata.get("return")?.as_i64().and_then(|code| i32::try_from(code).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stead's servers use the client from tasks that move between threads.
    #[test]
    fn futures_can_be_sent() {
        fn sent<T: Send>(_: &T) {}
        let client =
            Client::new(crate::Dialect::Incus, crate::Endpoint::Unix("/nowhere/unix.socket".into())).unwrap();
        let command = Command::new(["true"]);
        sent(&client.exec_to_end("p", "c", &command, b"", 1, Duration::from_secs(1)));
        sent(&client.wait(&Operation::known("r", "p"), Duration::from_secs(1)));
        sent(&client.events(crate::EventFilter::lifecycle()));
        sent(&client.members());
    }
}
