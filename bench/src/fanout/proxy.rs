//! A TCP proxy that stands for a network card of limited speed, or for a network that damages, cuts or swallows what a server answers.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What happens to the server's bytes; positions count from the start of each connection.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// At most this many bytes a second over all connections.
    Pace(f64),
    /// One bit of this byte is flipped.
    Flip(u64),
    /// The connection ends here.
    Cut(u64),
    /// Nothing comes from here on; the connection stays.
    Hang(u64),
}

/// Stops with the value.
pub struct Proxy {
    pub url: String,
    fault: Arc<Mutex<Fault>>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Way {
    to: SocketAddr,
    fault: Arc<Mutex<Fault>>,
    /// When the card is free again.
    free: Mutex<Instant>,
}

impl Proxy {
    /// Stands before the server at `to`, on a free loopback port.
    pub async fn start(to: SocketAddr, fault: Fault) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let fault = Arc::new(Mutex::new(fault));
        let way = Arc::new(Way { to, fault: fault.clone(), free: Mutex::new(Instant::now()) });
        let task = tokio::spawn(async move {
            // Connections end with the listener.
            let mut open = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let way = way.clone();
                open.spawn(async move {
                    // A broken connection is what this is for.
                    let _ = way.carry(client).await;
                });
            }
        });
        Ok(Self { url, fault, task })
    }

    /// From the next connection on.
    #[cfg(test)]
    pub fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }
}

impl Way {
    async fn carry(&self, client: TcpStream) -> std::io::Result<()> {
        let server = TcpStream::connect(self.to).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let fault = *self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut client_read, mut client_write) = client.into_split();
        let (mut server_read, mut server_write) = server.into_split();
        let back = async {
            let (mut buffer, mut at) = (vec![0; 64 << 10], 0u64);
            loop {
                let n = server_read.read(&mut buffer).await?;
                if n == 0 {
                    return client_write.shutdown().await;
                }
                let Some(part) = buffer.get_mut(..n) else { return Ok(()) };
                let inside = |place: u64| usize::try_from(place.wrapping_sub(at)).ok().filter(|i| *i < n);
                match fault {
                    Fault::Pace(rate) => self.wait(n, rate).await,
                    Fault::Flip(place) => {
                        if let Some(byte) = inside(place).and_then(|i| part.get_mut(i)) {
                            *byte ^= 0x10;
                        }
                    }
                    Fault::Cut(place) | Fault::Hang(place) => {
                        if let Some(i) = inside(place) {
                            client_write.write_all(part.get(..i).unwrap_or_default()).await?;
                            if matches!(fault, Fault::Hang(_)) {
                                std::future::pending::<()>().await;
                            }
                            return Ok(());
                        }
                    }
                }
                client_write.write_all(part).await?;
                at += n as u64;
            }
        };
        let forth = async { tokio::io::copy(&mut client_read, &mut server_write).await.map(|_| ()) };
        tokio::select! {
            done = back => done,
            // The caller may close its side and still read.
            done = async { forth.await?; std::future::pending().await } => done,
        }
    }

    async fn wait(&self, bytes: usize, rate: f64) {
        let until = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            *free = (*free).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate);
            *free
        };
        tokio::time::sleep_until(until).await;
    }
}
