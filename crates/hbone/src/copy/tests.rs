use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

#[tokio::test]
async fn each_direction_between_sockets_ends_by_itself() {
    let (mut client, mut near) = duplex(64);
    let (mut far, mut server) = duplex(64);
    let counters = Counters::default();
    let copying = sockets(&mut near, &mut far, &counters);
    let talking = async {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        server.write_all(b"an answer after the half-close").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "an answer after the half-close");
    };
    let (copied, ()) = tokio::join!(copying, talking);
    copied.unwrap();
    assert_eq!((counters.forward.into_inner(), counters.backward.into_inner()), (8, 30));
}

#[tokio::test]
async fn a_large_transfer_arrives_whole_through_small_pipes() {
    let (mut client, mut near) = duplex(5_000);
    let (mut far, mut server) = duplex(3_000);
    let counters = Counters::default();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[number as usize % 3]).collect();
    let copying = sockets(&mut near, &mut far, &counters);
    let sending = async {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        client
    };
    let receiving = async {
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        drop(server);
        received
    };
    let (copied, _client, received) = tokio::join!(copying, sending, receiving);
    copied.unwrap();
    assert!(received == sent);
}
