//! The console's process: listens, admits clients, runs the command while a client is connected, ends with its
//! instance.

use super::{
    Spec,
    keys::Held,
    rfb::{self, Resized, Said, View},
    screen::{Font, Picture, Screen},
};
use crate::engine::PROJECT;
use rustix::fs::{FlockOperation, flock};
use std::{
    cell::Cell,
    fs::{self, File},
    io::{self, Write},
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};
use stead_incus::{Client, Endpoint, exec::Exec, requests::exec::Command};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::LocalSet,
    time::{sleep, timeout},
};

/// Most clients of one console.
const MAX_CLIENTS: usize = 8;
/// Time limit for a client's handshake.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// A client that accepts no data for this long is disconnected.
const SEND_PATIENCE: Duration = Duration::from_secs(30);
/// Shortest interval between pictures: more would not be visible.
const FRAME: Duration = Duration::from_millis(20);
/// Each wrong password delays the next one by this much more, up to [`MAX_PENALTY`].
const PENALTY: Duration = Duration::from_secs(1);
const MAX_PENALTY: Duration = Duration::from_secs(8);
/// How often the instance is checked, and after how many checks without it the console ends: a restart of the instance
/// does not end it.
const WATCH: Duration = Duration::from_secs(5);
const MAX_MISSES: u32 = 3;
/// Sizes that a client may request, in pixels.
const SIZES: std::ops::RangeInclusive<u16> = 80..=4096;

/// Input from clients to the terminal.
enum Input {
    /// A client connected.
    Look,
    Typed(Vec<u8>),
    Size(u16, u16),
}

/// State shown to all clients of a console.
#[derive(Clone)]
struct Shown {
    picture: Rc<Picture>,
    application_keys: bool,
    /// Incremented when all clients are disconnected.
    farewells: u32,
    /// Incremented with each applied size request.
    resizes: u32,
}

/// Runs the console with its files in `directory`, until its instance stops or a signal ends it.
///
/// # Errors
/// Its files cannot be used, or the port is taken.
pub fn serve(directory: &Path) -> io::Result<()> {
    let mut lock = File::options().write(true).create(true).truncate(false).open(directory.join("lock"))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    lock.set_len(0)?;
    write!(lock, "{}", std::process::id())?;
    let spec: Spec = serde_json::from_slice(&fs::read(directory.join("spec.json"))?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = LocalSet::new().block_on(&runtime, console(spec));
    // A resolver or a file read that hangs must not keep the process.
    runtime.shutdown_background();
    drop(lock);
    ended
}

async fn console(spec: Spec) -> io::Result<()> {
    let spec = Rc::new(spec);
    let listener = TcpListener::bind((spec.listen, spec.port)).await.map_err(|e| {
        io::Error::new(e.kind(), format!("cannot listen on {}:{}: {e}", spec.listen, spec.port))
    })?;
    let mut terminate = signal(SignalKind::terminate())?;
    let client = Client::discover(Endpoint::Unix(spec.socket.clone())).await.map_err(io::Error::other)?;
    // The starter waits for this byte. Later output is not read.
    io::stdout().write_all(b"+").and_then(|()| io::stdout().flush())?;

    let screen = Screen::new(spec.width, spec.height);
    let first =
        Shown { picture: Rc::new(screen.picture()), application_keys: false, farewells: 0, resizes: 0 };
    let (show, shown) = watch::channel(first);
    let (input, inputs) = mpsc::channel(256);
    let run = tokio::task::spawn_local(terminal(Rc::clone(&spec), client.clone(), screen, inputs, show));
    let accept = accept(listener, Rc::clone(&spec), input, shown);
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        () = gone(&client, &spec.instance) => Ok(()),
        ended = accept => ended,
        _ = run => Ok(()),
    }
}

/// Returns when the instance has not run for a while.
async fn gone(client: &Client, instance: &str) {
    let mut misses = 0;
    while misses < MAX_MISSES {
        sleep(WATCH).await;
        match client.instance_state(PROJECT, instance).await {
            Ok(state) if matches!(state.status.as_str(), "Running" | "Frozen") => misses = 0,
            // A daemon that is being restarted does not answer.
            Err(error) if error.is_silence() => {}
            _ => misses += 1,
        }
    }
}

async fn accept(
    listener: TcpListener,
    spec: Rc<Spec>,
    input: mpsc::Sender<Input>,
    shown: watch::Receiver<Shown>,
) -> io::Result<()> {
    let clients = Rc::new(Cell::new(0_usize));
    let penalty = Rc::new(Cell::new(Duration::ZERO));
    loop {
        let (socket, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of descriptors, or the client was gone at once.
                eprintln!("accept: {e}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if clients.get() >= MAX_CLIENTS {
            continue;
        }
        clients.set(clients.get() + 1);
        let (clients, penalty) = (Rc::clone(&clients), Rc::clone(&penalty));
        let (spec, input, shown) = (Rc::clone(&spec), input.clone(), shown.clone());
        tokio::task::spawn_local(async move {
            // An error ends only this client.
            if let Err(error) = serve_client(socket, &spec, &penalty, input, shown).await {
                eprintln!("client: {error}");
            }
            clients.set(clients.get() - 1);
        });
    }
}

async fn serve_client(
    mut socket: TcpStream,
    spec: &Spec,
    penalty: &Cell<Duration>,
    input: mpsc::Sender<Input>,
    mut shown: watch::Receiver<Shown>,
) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let patience = HANDSHAKE_PATIENCE + MAX_PENALTY;
    timeout(patience, greet(&mut socket, spec, penalty)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
    input.send(Input::Look).await.map_err(|_| closed())?;
    let init = rfb::server_init(shown.borrow().picture.size(), &spec.instance);
    send(&mut socket, &init).await?;

    let (mut view, font, mut held) = (View::default(), Font::default(), Held::default());
    let mut bytes = Vec::new();
    let mut wants = false;
    let mut last = Instant::now() - FRAME;
    let farewells = shown.borrow().farewells;
    // The count of applied size requests at this client's own.
    let mut wished: Option<u32> = None;
    loop {
        if wished.is_some_and(|before| before != shown.borrow().resizes) {
            view.answer(Resized::Done);
            wished = None;
        }
        if wants && last.elapsed() >= FRAME {
            let picture = Rc::clone(&shown.borrow_and_update().picture);
            if let Some(update) = view.update(&picture, &font) {
                send(&mut socket, &update).await?;
                wants = false;
                last = Instant::now();
            }
        }
        tokio::select! {
            read = socket.read_buf(&mut bytes) => {
                if read? == 0 {
                    return Ok(());
                }
                while let Some(said) = rfb::take(&mut bytes).map_err(io::Error::other)? {
                    match said {
                        Said::Format(format) => view.set_format(format),
                        Said::Encodings(encodings) => view.set_encodings(&encodings),
                        Said::Update { incremental } => {
                            if !incremental {
                                view.forget();
                            }
                            wants = true;
                        }
                        Said::Key { key, down } => {
                            let typed = held.press(key, down, shown.borrow().application_keys);
                            if !typed.is_empty() {
                                input.send(Input::Typed(typed)).await.map_err(|_| closed())?;
                            }
                        }
                        Said::Size { width, height } if SIZES.contains(&width) && SIZES.contains(&height) => {
                            wished = Some(shown.borrow().resizes);
                            input.send(Input::Size(width, height)).await.map_err(|_| closed())?;
                        }
                        Said::Size { .. } => view.answer(Resized::Impossible),
                        Said::Nothing => {}
                    }
                }
            }
            changed = shown.changed() => {
                changed.map_err(|_| closed())?;
                if shown.borrow().farewells != farewells {
                    return Ok(());
                }
            }
            () = sleep(FRAME), if wants && last.elapsed() < FRAME => {}
        }
    }
}

async fn send(socket: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    timeout(SEND_PATIENCE, socket.write_all(bytes)).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// The handshake up to ClientInit, which nobody passes without the password, if there is one.
async fn greet(socket: &mut TcpStream, spec: &Spec, penalty: &Cell<Duration>) -> io::Result<()> {
    let refuse = |why: &str| io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned());
    socket.write_all(rfb::VERSION).await?;
    let mut greeting = [0; 12];
    socket.read_exact(&mut greeting).await?;
    let minor = rfb::minor_version(&greeting).ok_or_else(|| refuse("not a VNC client"))?;
    let kind = if spec.password.is_some() { rfb::SECURITY_VNC } else { rfb::SECURITY_NONE };
    if minor == 3 {
        socket.write_all(&u32::from(kind).to_be_bytes()).await?;
    } else {
        socket.write_all(&[1, kind]).await?;
        let chosen = socket.read_u8().await?;
        if chosen != kind {
            return Err(refuse("it chose a security type that was not offered"));
        }
    }
    if let Some(password) = &spec.password {
        let mut challenge = [0; 16];
        random(&mut challenge)?;
        socket.write_all(&challenge).await?;
        let mut response = [0; 16];
        socket.read_exact(&mut response).await?;
        sleep(penalty.get()).await;
        if !rfb::same(&response, &rfb::response(password, &challenge)) {
            penalty.set((penalty.get() + PENALTY).min(MAX_PENALTY));
            socket.write_all(&1_u32.to_be_bytes()).await?;
            if minor == 8 {
                let why = b"wrong password";
                socket.write_all(&(why.len() as u32).to_be_bytes()).await?;
                socket.write_all(why).await?;
            }
            return Err(refuse("wrong password"));
        }
        penalty.set(Duration::ZERO);
        socket.write_all(&0_u32.to_be_bytes()).await?;
    } else if minor == 8 {
        socket.write_all(&0_u32.to_be_bytes()).await?;
    }
    // ClientInit: whether others may stay. They may.
    socket.read_u8().await.map(drop)
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    let got = rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty())?;
    if got == bytes.len() { Ok(()) } else { Err(io::Error::other("no randomness")) }
}

/// Runs the command whenever a client is connected and it does not run, and keeps the picture.
async fn terminal(
    spec: Rc<Spec>,
    client: Client,
    mut screen: Screen,
    mut inputs: mpsc::Receiver<Input>,
    show: watch::Sender<Shown>,
) {
    let (mut width, mut height) = (spec.width, spec.height);
    let mut ended = false;
    let publish = |screen: &Screen| {
        show.send_modify(|shown| {
            shown.picture = Rc::new(screen.picture());
            shown.application_keys = screen.application_keys();
        });
    };
    let resized = |screen: &Screen| {
        publish(screen);
        show.send_modify(|shown| shown.resizes = shown.resizes.wrapping_add(1));
    };
    let idle = if spec.timeout_s == 0 { Duration::MAX } else { Duration::from_secs(spec.timeout_s.into()) };
    loop {
        // A client connected, or pressed a key after the last command had ended.
        match inputs.recv().await {
            None => return,
            Some(Input::Size(w, h)) => {
                (width, height) = (w, h);
                screen.resize(w, h);
                resized(&screen);
                continue;
            }
            Some(Input::Look) if ended => continue,
            Some(Input::Look | Input::Typed(_)) => {}
        }
        screen = Screen::new(width, height);
        let command = Command {
            argv: spec.command.clone(),
            environment: [("TERM".to_owned(), "xterm-256color".to_owned())].into(),
            terminal: Some(screen.cells()),
            ..Command::default()
        };
        let size = (&mut width, &mut height);
        let why = match client.exec(PROJECT, &spec.instance, &command).await {
            Ok(exec) => match talk(exec, &mut screen, &mut inputs, size, idle, (&publish, &resized)).await {
                Over::Ended => "the command has ended".to_owned(),
                Over::Idle => {
                    // All clients are disconnected; a later one starts a new session.
                    show.send_modify(|shown| shown.farewells += 1);
                    ended = false;
                    continue;
                }
                Over::Closed => return,
            },
            Err(error) => format!("the command cannot be run: {error}"),
        };
        // A client that reconnects by itself would restart it again and again, so a key is required.
        ended = true;
        screen.print(format!("\r\n[{why}; press a key]\r\n").as_bytes());
        publish(&screen);
    }
}

/// How a command ended.
enum Over {
    Ended,
    Idle,
    Closed,
}

async fn talk(
    exec: Exec,
    screen: &mut Screen,
    inputs: &mut mpsc::Receiver<Input>,
    size: (&mut u16, &mut u16),
    idle: Duration,
    (publish, resized): (&impl Fn(&Screen), &impl Fn(&Screen)),
) -> Over {
    let Exec { mut stdin, mut stdout, mut control, .. } = exec;
    publish(screen);
    let mut typed = Instant::now();
    loop {
        let left = idle.saturating_sub(typed.elapsed());
        tokio::select! {
            output = stdout.next() => match output {
                Ok(Some(bytes)) => {
                    let answer = screen.print(&bytes);
                    publish(screen);
                    if !answer.is_empty() && stdin.write(answer.into()).await.is_err() {
                        return Over::Ended;
                    }
                }
                Ok(None) | Err(_) => return Over::Ended,
            },
            input = inputs.recv() => match input {
                None => return Over::Closed,
                Some(Input::Look) => {}
                Some(Input::Typed(bytes)) => {
                    typed = Instant::now();
                    if stdin.write(bytes.into()).await.is_err() {
                        return Over::Ended;
                    }
                }
                Some(Input::Size(width, height)) => {
                    (*size.0, *size.1) = (width, height);
                    screen.resize(width, height);
                    resized(screen);
                    let (columns, rows) = screen.cells();
                    if control.resize(columns, rows).await.is_err() {
                        return Over::Ended;
                    }
                }
            },
            // When the control connection is dropped, the server ends the command.
            () = sleep(left.min(Duration::from_secs(1 << 20))) => {
                if typed.elapsed() >= idle {
                    return Over::Idle;
                }
            }
        }
    }
}
