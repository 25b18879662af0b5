//! Commands run for a client, over the frames of `stead_agent::frame`.
//!
//! ```text
//! first frame ─ start ─┬─ talk: leader's end and its output, then the exit frame ──► linger ─ closed
//!                      └─ listen: stdin, resize, signals; ends when the client is gone ─► the group is killed
//! ```
//!
//! Every command leads its own session. Output is sent until the leader has ended and the pipes are empty: processes
//! that it left in the background do not hold the client. Does not wait for processes: the reaper does.

use super::process::{self, Channel, Started};
use crate::reaper::Exit;
use crate::reaper::Reaper;
use bytes::{Bytes, BytesMut};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process_group};
use std::{future::pending, io, os::fd::AsFd, time::Duration};
use stead_agent::{
    exec::{read_frame, write_frame},
    frame::Frame,
};
use stead_model::agent::ExecExit;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, unix::AsyncFd},
    net::TcpStream,
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_rustls::server::TlsStream;

/// Time limit for the client's first frame, the request.
const FIRST_FRAME: Duration = Duration::from_secs(10);
/// Frames of at most 16 KiB queued between the command and the network: one is sent while the next is read.
const QUEUE: usize = 1;
/// How long a process group has after SIGHUP before it is killed.
const HANG_UP: Duration = Duration::from_secs(2);
/// How long the client has to close after the exit frame. If the node closed with the client's data unread, the
/// connection would be reset and the exit frame could be lost.
const LINGER: Duration = Duration::from_secs(2);

/// Serves one `exec` connection from its upgrade to its end.
pub async fn serve(upgraded: Upgraded, reaper: Reaper) {
    // Always succeeds: all connections of the server have this type.
    let Ok(parts) = upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>() else { return };
    let stream = parts.io.into_inner();
    let watched = stream.get_ref().0.as_fd().try_clone_to_owned();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let gone = async {
        match watched {
            Ok(fd) => closed_by_peer(process::watched(fd, Interest::READABLE)).await,
            Err(_) => pending().await,
        }
    };
    let mut buffer = BytesMut::from(&parts.read_buf[..]);
    if session(&mut reader, &mut buffer, &mut writer, gone, &reaper).await {
        let _ = timeout(LINGER, async {
            writer.shutdown().await?;
            tokio::io::copy(&mut reader, &mut tokio::io::sink()).await
        })
        .await;
    }
}

/// Resolves when the peer has closed the connection, even with data unread: nothing is read while a command does not
/// read its standard input.
async fn closed_by_peer(fd: io::Result<AsyncFd<std::os::fd::OwnedFd>>) {
    let Ok(fd) = fd else { return pending().await };
    loop {
        let Ok(mut guard) = fd.readable().await else { return pending().await };
        if guard.ready().is_read_closed() {
            return;
        }
        guard.clear_ready();
    }
}

/// Whether the exit frame was sent.
async fn session<R, W>(
    reader: &mut R,
    buffer: &mut BytesMut,
    writer: &mut W,
    gone: impl Future<Output = ()>,
    reaper: &Reaper,
) -> bool
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let request = match timeout(FIRST_FRAME, read_frame(reader, buffer)).await {
        Ok(Ok(Some(Frame::Request(request)))) => request,
        Ok(Ok(Some(_))) => return refuse(writer, "the first frame is not a request").await,
        Ok(Err(e)) if e.kind() == io::ErrorKind::InvalidData => {
            return refuse(writer, &format!("the first frame is not a request: {}", crate::chain(&e))).await;
        }
        _ => return false,
    };
    let Started { pid, mut exit, channel, _child } = match process::start(&request, reaper) {
        Ok(started) => started,
        Err(failed) => return send(writer, Frame::Exit(failed)).await,
    };
    let (ended, leader) = watch::channel(None);
    let finished = {
        let talk = talk(&channel, &mut exit, &ended, writer);
        let listen = listen(&channel, pid, &leader, reader, buffer);
        tokio::select! {
            sent = talk => sent.is_ok(),
            () = listen => false,
            () = gone => false,
        }
    };
    let running = leader.borrow().is_none();
    if !finished && running {
        // Closing a terminal also hangs up its foreground group.
        drop(channel);
        end_group(pid, &mut exit).await;
    }
    finished
}

async fn refuse<W: AsyncWrite + Unpin>(writer: &mut W, why: &str) -> bool {
    send(writer, Frame::Exit(ExecExit { code: 126, error: Some(why.to_owned()) })).await
}

async fn send<W: AsyncWrite + Unpin>(writer: &mut W, frame: Frame) -> bool {
    write_frame(writer, &mut BytesMut::new(), &frame).await.is_ok()
}

/// Sends the command's output, then its exit.
async fn talk<W: AsyncWrite + Unpin>(
    channel: &Channel,
    exit: &mut oneshot::Receiver<Exit>,
    ended: &watch::Sender<Option<Exit>>,
    writer: &mut W,
) -> io::Result<()> {
    let (frames, mut queue) = mpsc::channel(QUEUE);
    let hear = async {
        let leader = async {
            // The reaper lives as long as the node.
            let how = exit.await.unwrap_or(Exit::Signal(9));
            ended.send_replace(Some(how));
            how
        };
        let stdout = pump(channel.stdout(), Frame::Stdout, &frames, ended.subscribe());
        let stderr = async {
            if let Some(stderr) = channel.stderr() {
                pump(stderr, Frame::Stderr, &frames, ended.subscribe()).await;
            }
        };
        let (how, (), ()) = tokio::join!(leader, stdout, stderr);
        let _ = frames.send(Frame::Exit(ExecExit { code: how.shell_code(), error: None })).await;
        drop(frames);
        Ok(())
    };
    let write = async {
        let mut scratch = BytesMut::new();
        while let Some(frame) = queue.recv().await {
            write_frame(writer, &mut scratch, &frame).await?;
        }
        Ok(())
    };
    tokio::try_join!(hear, write).map(|_| ())
}

/// Passes on one output until its end. Once the leader has ended, passes on at most what the pipe could hold then,
/// since other processes may write for ever.
async fn pump(
    output: &process::Pipe,
    frame: fn(Bytes) -> Frame,
    frames: &mpsc::Sender<Frame>,
    mut ended: watch::Receiver<Option<Exit>>,
) {
    let mut rest = None;
    loop {
        if rest.is_none() && ended.borrow_and_update().is_some() {
            rest = Some(output.capacity());
        }
        let data = match rest {
            Some(0) => return,
            Some(_) => output.read_rest().await,
            None => tokio::select! {
                data = output.read() => data,
                _ = ended.changed() => continue,
            },
        };
        match data {
            Ok(data) if !data.is_empty() => {
                rest = rest.map(|rest| rest.saturating_sub(data.len()));
                if frames.send(frame(data)).await.is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

/// Follows the client's frames; returns when the client is gone or breaks the protocol.
async fn listen<R: AsyncRead + Unpin>(
    channel: &Channel,
    pid: Pid,
    leader: &watch::Receiver<Option<Exit>>,
    reader: &mut R,
    buffer: &mut BytesMut,
) {
    let mut open = true;
    while let Ok(Some(frame)) = read_frame(reader, buffer).await {
        match frame {
            // A command need not read its standard input: after an error, further input is dropped.
            Frame::Stdin(data) if open => open = channel.write_stdin(&data).await.is_ok(),
            Frame::Stdin(_) => {}
            Frame::StdinClosed if open => open = channel.close_stdin().await,
            Frame::StdinClosed => {}
            Frame::Resize(size) => channel.resize(size),
            Frame::Signal(number) => {
                // Once reaped, its number may belong to another process.
                if leader.borrow().is_none()
                    && let Some(signal) = Signal::from_named_raw(number.into())
                {
                    let _ = kill_process_group(channel.foreground().unwrap_or(pid), signal);
                }
            }
            Frame::Request(_) | Frame::Stdout(_) | Frame::Stderr(_) | Frame::Exit(_) => return,
        }
    }
}

async fn end_group(pid: Pid, exit: &mut oneshot::Receiver<Exit>) {
    let _ = kill_process_group(pid, Signal::HUP);
    // A stopped process handles the hang-up only once it continues.
    let _ = kill_process_group(pid, Signal::CONT);
    let _ = timeout(HANG_UP, exit).await;
    let _ = kill_process_group(pid, Signal::KILL);
}
