//! A proxy that passes bytes on as they are.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use crate::Result;

/// Carries each connection that is accepted to an address, until the process is killed.
pub fn relay(listen: &str, to: &str) -> Result {
    for near in TcpListener::bind(listen)?.incoming().flatten() {
        let to = to.to_owned();
        thread::spawn(move || -> Result {
            let far = TcpStream::connect(to)?;
            near.set_nodelay(true)?;
            far.set_nodelay(true)?;
            let back = (far.try_clone()?, near.try_clone()?);
            let other = thread::spawn(move || one_way(back.0, back.1));
            one_way(near, far)?;
            other.join().map_err(|_| "a direction broke off")?
        });
    }
    Ok(())
}

fn one_way(mut from: TcpStream, mut to: TcpStream) -> Result {
    std::io::copy(&mut from, &mut to)?;
    Ok(to.shutdown(Shutdown::Write)?)
}
