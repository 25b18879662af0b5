//! Files to and from a client, as tar streams: memory is bounded by a few chunks, whatever the size.
//!
//! Packing and unpacking block on disks, so each transfer has a thread, connected by a channel of chunks. A client that
//! stalls ends its transfer.

use super::answer::{self, Answer, Refusal};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream;
use http_body_util::BodyExt;
use hyper::{StatusCode, body::Incoming};
use std::{
    io::{self, Read, Write},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use stead_agent::files::{pack, unpack};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout,
};

/// Chunks queued in one transfer.
const QUEUE: usize = 2;
/// Size of a chunk towards the client.
const CHUNK: usize = 64 * 1024;
/// A transfer ends when its client neither sends nor receives a chunk for this long.
const STALL: Duration = Duration::from_secs(60);
/// After a refusal the rest of the tar is read for this long and this far, so that the client sees the refusal and not
/// a reset connection.
const DISCARD_TIME: Duration = Duration::from_secs(5);
const DISCARD: usize = 64 << 20;

/// Sends a tar of the file or tree.
pub async fn get(path: String, transfers: &Arc<Semaphore>) -> Answer {
    let permit = permit(transfers)?;
    let (chunks, receiver) = mpsc::channel::<io::Result<Bytes>>(QUEUE);
    let (found, exists) = oneshot::channel();
    let runtime = Handle::current();
    spawn("pack", permit, move || {
        let source = match pack::Source::find(PathBuf::from(path)) {
            Ok(source) => source,
            Err(e) => return drop(found.send(Err(e))),
        };
        if found.send(Ok(())).is_err() {
            return;
        }
        let mut writer = ChunkWriter { runtime, chunks, buffer: BytesMut::new() };
        if let Err(e) = source.pack(&mut writer).and_then(|()| writer.flush()) {
            let _ = writer.send(Err(e));
        }
    })?;
    match exists.await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => return Err(refusal(&e)),
        Err(_) => {
            return Err(Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "packing the files failed unexpectedly",
            ));
        }
    }
    Ok(answer::stream(
        "application/x-tar",
        stream::unfold(receiver, |mut r| async move { r.recv().await.map(|chunk| (chunk, r)) }),
    ))
}

/// Unpacks a tar in a directory.
pub async fn put(path: String, mut body: Incoming, transfers: &Arc<Semaphore>) -> Answer {
    let permit = permit(transfers)?;
    let (chunks, receiver) = mpsc::channel(QUEUE);
    let (done, result) = oneshot::channel();
    spawn("unpack", permit, move || {
        let mut reader = ChunkReader { chunks: receiver, chunk: Bytes::new() };
        let _ = done.send(
            unpack::Target::open(PathBuf::from(path)).and_then(|t| t.unpack(&mut reader, unpack::Top::Kept)),
        );
    })?;
    loop {
        let chunk = match timeout(STALL, body.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => Ok(data),
                Err(_) => continue,
            },
            Ok(Some(Err(e))) => Err(io::Error::other(e)),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the next part of the tar did not arrive in time",
            )),
        };
        let last = chunk.is_err();
        if chunks.send(chunk).await.is_err() {
            break;
        }
        if last {
            break;
        }
    }
    drop(chunks);
    let result = result.await.unwrap_or_else(|_| {
        Err(unpack::UnpackError::Read(io::Error::other("unpacking failed unexpectedly")))
    });
    if let Err(error) = result {
        let _ = timeout(DISCARD_TIME, discard(&mut body)).await;
        let status = match &error {
            unpack::UnpackError::Target { source, .. } => refusal(source).status,
            unpack::UnpackError::Read(_)
            | unpack::UnpackError::Refused { .. }
            | unpack::UnpackError::Skipped { .. } => StatusCode::BAD_REQUEST,
            unpack::UnpackError::Write { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        return Err(Refusal::new(status, crate::chain(&error)));
    }
    Ok(answer::empty(StatusCode::NO_CONTENT))
}

async fn discard(body: &mut Incoming) {
    let mut total = 0;
    while let Some(Ok(frame)) = body.frame().await {
        total += frame.data_ref().map_or(0, Bytes::len);
        if total > DISCARD {
            return;
        }
    }
}

fn permit(transfers: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Refusal> {
    Arc::clone(transfers).try_acquire_owned().map_err(|_| {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many file transfers are running")
            .hint("try again once one has ended")
    })
}

fn spawn(
    name: &str,
    permit: OwnedSemaphorePermit,
    work: impl FnOnce() + Send + 'static,
) -> Result<(), Refusal> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        work();
        drop(permit);
    });
    thread.map(drop).map_err(|e| {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("cannot start a thread for the transfer: {e}"))
    })
}

fn refusal(error: &io::Error) -> Refusal {
    let status = match error.kind() {
        io::ErrorKind::NotFound => StatusCode::NOT_FOUND,
        io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename => {
            StatusCode::BAD_REQUEST
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Refusal::new(status, error.to_string())
}

/// Writes to a connection from a thread.
struct ChunkWriter {
    runtime: Handle,
    chunks: mpsc::Sender<io::Result<Bytes>>,
    buffer: BytesMut,
}

impl ChunkWriter {
    fn send(&self, chunk: io::Result<Bytes>) -> io::Result<()> {
        // The timer must be created inside the runtime.
        match self.runtime.block_on(async { timeout(STALL, self.chunks.send(chunk)).await }) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        let chunk = self.buffer.split().freeze();
        if chunk.is_empty() { Ok(()) } else { self.send(Ok(chunk)) }
    }
}

/// Reads from a connection in a thread.
struct ChunkReader {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    chunk: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.chunks.blocking_recv() {
                None => return Ok(0),
                Some(chunk) => self.chunk = chunk?,
            }
        }
        let n = self.chunk.len().min(out.len());
        self.chunk.copy_to_slice(out.get_mut(..n).unwrap_or_default());
        Ok(n)
    }
}
