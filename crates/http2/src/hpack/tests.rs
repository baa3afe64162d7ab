//! The examples of RFC 7541 appendix C, and what is wrong.

use super::*;

type Fields = Vec<(String, String)>;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn decoded(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, Error> {
    let mut fields = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    decoder.decode(block, |name, value| fields.push((text(name), text(value))))?;
    Ok(fields)
}

fn expect(decoder: &mut Decoder, hex: &str, fields: &[(&str, &str)], table: &[(&str, &str)]) {
    let own = |fields: &[(&str, &str)]| -> Fields {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    assert_eq!(decoded(decoder, &bytes(hex)).unwrap(), own(fields));
    let held = decoder
        .table
        .entries()
        .map(|(name, value)| (String::from_utf8(name.to_vec()).unwrap(), String::from_utf8(value.to_vec()).unwrap()));
    assert_eq!(held.collect::<Fields>(), own(table));
}

#[test]
fn integers_of_c_1() {
    for (prefix, value, expected) in [(5, 10, "0a"), (5, 1337, "1f9a0a"), (8, 42, "2a")] {
        let mut out = Vec::new();
        put_integer(&mut out, 0, prefix, value);
        assert_eq!(out, bytes(expected));
    }
}

#[test]
fn literals_of_c_2() {
    let decoder = &mut Decoder::new();
    let custom = ("custom-key", "custom-header");
    expect(decoder, "400a637573746f6d2d6b65790d637573746f6d2d686561646572", &[custom], &[custom]);
    expect(decoder, "040c2f73616d706c652f70617468", &[(":path", "/sample/path")], &[custom]);
    expect(decoder, "100870617373776f726406736563726574", &[("password", "secret")], &[custom]);
    expect(decoder, "82", &[(":method", "GET")], &[custom]);
}

const FIRST: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];

fn requests(blocks: [&str; 3]) {
    let decoder = &mut Decoder::new();
    let (authority, cache) = ((":authority", "www.example.com"), ("cache-control", "no-cache"));
    let custom = ("custom-key", "custom-value");
    expect(decoder, blocks[0], &FIRST, &[authority]);
    expect(decoder, blocks[1], &[&FIRST[..], &[cache]].concat(), &[cache, authority]);
    let third = [(":method", "GET"), (":scheme", "https"), (":path", "/index.html"), authority, custom];
    expect(decoder, blocks[2], &third, &[custom, cache, authority]);
}

#[test]
fn requests_without_huffman_of_c_3() {
    requests([
        "828684410f7777772e6578616d706c652e636f6d",
        "828684be58086e6f2d6361636865",
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
    ]);
}

#[test]
fn requests_with_huffman_of_c_4() {
    requests([
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    ]);
}

fn responses(blocks: [&str; 3]) {
    let decoder = &mut Decoder::new();
    decoder.table.resize(256).unwrap();
    let status = (":status", "302");
    let cache = ("cache-control", "private");
    let date = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
    let location = ("location", "https://www.example.com");
    expect(decoder, blocks[0], &[status, cache, date, location], &[location, date, cache, status]);
    let status = (":status", "307");
    expect(decoder, blocks[1], &[status, cache, date, location], &[status, location, date, cache]);
    let date = ("date", "Mon, 21 Oct 2013 20:13:22 GMT");
    let encoding = ("content-encoding", "gzip");
    let cookie = ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1");
    let fields = [(":status", "200"), cache, date, location, encoding, cookie];
    expect(decoder, blocks[2], &fields, &[cookie, encoding, date]);
}

#[test]
fn responses_without_huffman_of_c_5() {
    responses([
        "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e1768747470733a2f2f7777772e6578616d706c652e636f6d",
        "4803333037c1c0bf",
        "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
    ]);
}

#[test]
fn responses_with_huffman_of_c_6() {
    responses([
        "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
        "4883640effc1c0bf",
        "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
    ]);
}

#[test]
fn what_is_wrong_is_refused() {
    for (hex, what) in [
        ("80", "index 0"),
        ("be", "beyond both tables"),
        ("7e0161", "a name beyond both tables"),
        ("3fe21f", "a table of 4097 bytes"),
        ("8220", "a size after a field"),
        ("202020", "three sizes"),
        ("00", "no name"),
        ("000161", "no value"),
        ("00016105ff", "a value that is cut off"),
        ("ffffffffffff01", "an integer that is too long"),
        ("ff80808080", "an integer that is cut off"),
        ("00016181ff", "bad padding"),
        ("00016184ffffffff", "the end's code"),
    ] {
        assert!(decoded(&mut Decoder::new(), &bytes(hex)).is_err(), "{what}");
    }
    assert_eq!(decoded(&mut Decoder::new(), &bytes("203fe11f82")).unwrap().len(), 1, "two sizes, the last 4096");
}

#[test]
fn without_a_table_nothing_is_kept() {
    let mut decoder = Decoder::new();
    decoder.decode(&bytes("400161016240016301642f"), |_, _| {}).unwrap_err();
    decoder.forbid_table();
    expect(&mut decoder, "20400161016282", &[("a", "b"), (":method", "GET")], &[]);
    assert!(decoded(&mut decoder, &bytes("21")).is_err(), "none may come back");
    assert!(decoded(&mut decoder, &bytes("be")).is_err());
}

#[test]
fn what_is_sent_is_understood() {
    let mut out = Vec::new();
    put_no_table(&mut out);
    let long = "x".repeat(5000);
    let fields =
        [(":status", "200"), (":method", "CONNECT"), (":authority", "10.0.0.1:80"), ("x-long", &long), ("a", "")];
    for (name, value) in fields {
        put_field(&mut out, name, value.as_bytes(), name == "a");
    }
    assert_eq!(out[..2], [0x20, 0x88]);
    assert_eq!(out[out.len() - 4..], [0x10, 1, b'a', 0], "never to be indexed");
    expect(&mut Decoder::new(), &out.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), &fields, &[]);
}
