//! The bytes that `docs/FORMAT.md` specifies, at the offsets it gives: code and text cannot drift
//! apart unnoticed. (Tree nodes: `format::node::tests`.)

use dbfs_fs_core::api::{FileType, Timestamp};
use dbfs_fs_core::format::bitmap::{encode_piece, mark};
use dbfs_fs_core::format::dirent::{NameEntry, encode_bucket, name_hash};
use dbfs_fs_core::format::pending::{PendingEntry, encode_pending};
use dbfs_fs_core::format::record::{RecordPlace, encode_record};
use dbfs_fs_core::format::xattr::{
    decode_xattr, encode_xattr, xattr_hash, xattr_key, xattr_parts, xattr_place,
};
use dbfs_fs_core::format::{
    Change, Chunk, GroupRange, InodeItem, ItemKind, JournalPart, JournalPoint, Key, MappedRun, PageBlocks,
    PageEntry, RootPtr, RootSlot, Superblock, Ticket,
};
use dbfs_fs_core::{BlockNr, BlockRun, Epoch, GroupNr, Ino, Lsn, PageNr, PageSize};
use uuid::Uuid;

const UUID: Uuid = Uuid::from_bytes([7; 16]);

/// The number of `len` bytes at `at`.
fn num(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Compares numbers: (offset, length, value).
fn expect(bytes: &[u8], fields: &[(usize, usize, u64)]) {
    for (at, len, want) in fields {
        assert_eq!(num(bytes, *at, *len), *want, "{len} bytes at {at}");
    }
}

/// The checksum at `at` is that of the bytes with itself taken as zero.
fn expect_crc(bytes: &[u8], at: usize) {
    let mut copy = bytes.to_vec();
    copy[at..at + 4].fill(0);
    assert_eq!(num(bytes, at, 4), u64::from(crc32c::crc32c(&copy)));
}

#[test]
fn crc32c_is_castagnoli() {
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn superblock() {
    let sb = Superblock {
        uuid: UUID,
        compat: 1,
        ro_compat: 2,
        incompat: 0,
        page_size: PageSize::new(16384).unwrap(),
        group_blocks: 512,
        total_blocks: 20_000,
        membership_start: BlockNr(16),
        membership_blocks: 256,
        slots_start: BlockNr(272),
        slot_rows: 128,
        first_data_block: BlockNr(528),
        segment_blocks: 32,
        segments: 16,
        reserve_blocks: 777,
        takeover_groups: 2,
        journal_groups: 3,
        hash_key: [9; 16],
        created: Timestamp { secs: -5, nanos: 6 },
        label: "name".into(),
    };
    let b = sb.encode(BlockNr(8));
    assert_eq!((&b[..8], b.len()), (&b"dbfsSB\r\n"[..], 4096));
    assert_eq!((&b[16..32], &b[144..160], &b[176..181]), (&[7; 16][..], &[9; 16][..], &b"name\0"[..]));
    let fields = [
        (8, 4, 1),
        (32, 8, 8),
        (40, 8, 1),
        (48, 8, 2),
        (56, 8, 0),
        (64, 4, 4096),
        (68, 4, 16384),
        (72, 4, 16384),
        (76, 4, 512),
        (80, 8, 20_000),
        (88, 8, 16),
        (96, 4, 256),
        (100, 4, 128),
        (104, 8, 272),
        (112, 8, 528),
        (120, 4, 32),
        (124, 4, 16),
        (128, 8, 777),
        (136, 4, 2),
        (140, 4, 1),
        (160, 8, -5i64 as u64),
        (168, 4, 6),
        (172, 4, 3),
    ];
    expect(&b, &fields);
    expect_crc(&b, 12);
    assert!(b[240..].iter().all(|b| *b == 0));
}

#[test]
fn root_slot() {
    let old = JournalPart {
        epoch: Epoch(3),
        start: JournalPoint { segment: 1, block: 2, lsn: Lsn(33), crc: 44 },
        end: Some((Lsn(55), 66)),
        segments: vec![BlockNr(600), BlockNr(700)],
    };
    let own =
        JournalPart { epoch: Epoch(4), end: None, segments: vec![BlockNr(800)], ..JournalPart::default() };
    let slot = RootSlot {
        epoch: Epoch(4),
        seq: 5,
        node_id: 6,
        lease_ballot: 7,
        checkpoint_lsn: Lsn(8),
        durable_lsn: Lsn(9),
        tree: RootPtr { addr: BlockNr(10), birth: Lsn(11), crc: 12, height: 13 },
        pending: Some(BlockRun::new(BlockNr(14), 15)),
        pending_len: 16,
        pending_crc: 17,
        next_ino: Ino(18),
        free_blocks: 19,
        total_blocks: 20,
        inodes: 21,
        claim: 24,
        reserved: vec![GroupRange { first: GroupNr(22), count: 23 }],
        unlocked: true,
        ended: true,
        draining: vec![GroupRange { first: GroupNr(25), count: 26 }],
        draining_unlocked: vec![GroupRange { first: GroupNr(27), count: 28 }],
        journal: vec![old, own],
    };
    let b = slot.encode(&UUID, BlockNr(280)).unwrap();
    assert_eq!((&b[..8], b.len(), &b[16..32]), (&b"dbfsROOT"[..], 4096, &[7; 16][..]));
    let head =
        [(8, 4, 1), (32, 8, 280), (40, 8, 4), (48, 8, 5), (56, 4, 6), (60, 8, 7), (68, 8, 8), (76, 8, 9)];
    expect(&b, &head);
    let tree = [(84, 8, 10), (92, 8, 11), (100, 4, 12), (104, 1, 13)];
    expect(&b, &tree);
    let rest = [
        (105, 8, 14),
        (113, 4, 15),
        (117, 4, 16),
        (121, 4, 17),
        (125, 8, 18),
        (133, 8, 19),
        (141, 8, 20),
        (149, 8, 21),
        (157, 8, 24),
        (221, 2, 1),
        (223, 4, 22),
        (227, 4, 23),
        (231, 2, 1),
        (233, 4, 25),
        (237, 4, 26),
        (165, 1, 3),
        (241, 2, 1),
        (243, 4, 27),
        (247, 4, 28),
        (251, 2, 2),
    ];
    expect(&b, &rest);
    let part = &b[253..];
    let first =
        [(0, 8, 3), (8, 4, 1), (12, 4, 2), (16, 8, 33), (24, 4, 44), (28, 8, 55), (36, 4, 66), (40, 2, 2)];
    expect(part, &first);
    expect(part, &[(42, 8, 600), (50, 8, 700), (58, 8, 4), (58 + 28, 8, u64::MAX), (58 + 40, 2, 1)]);
    expect_crc(&b, 12);
    // Row 4 of 8 rows begins at block 8 of the area; an odd root is in the second slot.
    assert_eq!(RootSlot::address(BlockNr(272), 8, Epoch(12), 3), BlockNr(272 + 9));
}

#[test]
fn ticket() {
    let ticket = Ticket { epoch: Epoch(12), claim: 3, node_id: 4, complete: true };
    // One a row, behind the 16 root slots of 8 rows.
    let own = Ticket::address(BlockNr(272), 8, Epoch(12));
    assert_eq!(own, BlockNr(272 + 16 + 4));
    let b = ticket.encode(&UUID, own);
    assert_eq!((&b[..8], b.len(), &b[16..32]), (&b"dbfsCLAM"[..], 4096, &[7; 16][..]));
    expect(&b, &[(8, 4, 1), (32, 8, own.0), (40, 8, 12), (48, 8, 3), (56, 4, 4), (60, 4, 2)]);
    expect_crc(&b[..512], 12);
    assert!(b[64..].iter().all(|b| *b == 0));
    let begun = Ticket { complete: false, ..ticket }.encode(&UUID, own);
    expect(&begun, &[(60, 4, 1)]);
    assert_eq!(Ticket::decode(&b, &UUID, own).unwrap(), Some(ticket));
    assert_eq!(Ticket::decode(&[0; 4096], &UUID, own).unwrap(), None);
    assert!(Ticket::decode(&b, &UUID, BlockNr(1)).is_err());
}

#[test]
fn record() {
    let place = RecordPlace {
        addr: BlockNr(1),
        epoch: Epoch(2),
        lsn: Lsn(3),
        durable_lsn: Lsn(4),
        prev_crc: 5,
        inodes: 6,
        node_id: 7,
    };
    let (b, crc) = encode_record(&UUID, &place, b"payload", 8);
    assert_eq!(
        (&b[..4], b.len(), &b[16..32], &b[96..103]),
        (&b"dbJR"[..], 4096, &[7; 16][..], &b"payload"[..])
    );
    let fields = [
        (4, 2, 1),
        (6, 2, 0),
        (8, 4, u64::from(crc)),
        (12, 4, 7),
        (32, 8, 1),
        (40, 8, 2),
        (48, 8, 3),
        (56, 8, 4),
        (64, 8, 6),
        (72, 4, 5),
        (76, 4, 7),
        (80, 4, 8),
    ];
    expect(&b, &fields);
    expect_crc(&b[..103], 8);
}

#[test]
fn changes() {
    let key = Key::new(Ino(1), ItemKind::DirEntry, 2);
    let run = MappedRun { start: BlockNr(5), pages: 2, last_blocks: 3, crcs: Some(vec![8, 9]) };
    // Tag, and the fields of the body.
    type Case = (Change, u64, Vec<(usize, usize, u64)>, usize);
    let cases: Vec<Case> = vec![
        (Change::PutItem { key, value: vec![77] }, 1, vec![(0, 8, 1), (8, 1, 3), (9, 8, 2), (17, 1, 77)], 18),
        (Change::DelItem { key }, 2, vec![(0, 8, 1), (8, 1, 3), (9, 8, 2)], 17),
        (
            Change::MapRun { ino: Ino(3), page: PageNr(4), run },
            3,
            vec![
                (0, 8, 3),
                (8, 8, 4),
                (16, 8, 5),
                (24, 4, 2),
                (28, 1, 3),
                (29, 1, 0),
                (30, 1, 1),
                (31, 4, 8),
                (35, 4, 9),
            ],
            39,
        ),
        (
            Change::Unmap { ino: Ino(3), page: PageNr(4), pages: 5 },
            4,
            vec![(0, 8, 3), (8, 8, 4), (16, 8, 5)],
            24,
        ),
        (Change::Free { run: BlockRun::new(BlockNr(3), 4) }, 5, vec![(0, 8, 3), (8, 4, 4)], 12),
        (
            Change::Inline { ino: Ino(3), offset: 4, data: vec![5, 6] },
            6,
            vec![(0, 8, 3), (8, 8, 4), (16, 1, 5), (17, 1, 6)],
            18,
        ),
        (
            Change::InlineZero { ino: Ino(3), offset: 4, len: 5 },
            7,
            vec![(0, 8, 3), (8, 8, 4), (16, 4, 5)],
            20,
        ),
        (Change::Reserve { first: GroupNr(3), count: 4 }, 8, vec![(0, 8, 3), (8, 4, 4)], 12),
        (
            Change::EpochStart { previous: Epoch(3), cut_lsn: Lsn(4), cut_crc: 5 },
            9,
            vec![(0, 8, 3), (8, 8, 4), (16, 4, 5)],
            20,
        ),
    ];
    for (change, tag, body, len) in cases {
        let mut b = Vec::new();
        change.encode(&mut b);
        expect(&b, &[(0, 1, tag), (1, 1, 0), (2, 4, len as u64)]);
        assert_eq!(b.len(), 6 + len, "{change:?}");
        expect(&b[6..], &body);
    }
    // An unknown change may be skipped if it says so, and only then.
    assert_eq!(Change::decode_all(&[200, 1, 1, 0, 0, 0, 5], 1), Some(vec![]));
    assert_eq!(Change::decode_all(&[200, 0, 1, 0, 0, 0, 5], 1), None);
}

#[test]
fn kinds_of_items() {
    let kinds = [
        (1, ItemKind::Inode),
        (2, ItemKind::Symlink),
        (3, ItemKind::DirEntry),
        (4, ItemKind::Map),
        (5, ItemKind::Xattr),
        (32, ItemKind::Orphan),
        (33, ItemKind::Bitmap),
        (34, ItemKind::RefCount),
        (35, ItemKind::Snapshot),
    ];
    for n in 0..=u8::MAX {
        let want = kinds.iter().find(|(k, _)| *k == n).map(|(_, kind)| *kind);
        assert_eq!(ItemKind::from_u8(n), want);
    }
}

#[test]
fn inode_and_names() {
    let time = |secs: i64| Timestamp { secs, nanos: 99 };
    let item = InodeItem {
        kind: FileType::Regular,
        perm: 0o4755,
        nlink: 2,
        uid: 3,
        gid: 4,
        rdev: 5,
        size: 6,
        blocks: 7,
        parent: Ino(8),
        atime: time(-1),
        mtime: time(10),
        ctime: time(11),
        btime: time(12),
        xattr_list: 13,
    };
    let b = item.encode();
    assert_eq!(b.len(), 128);
    let fields = [
        (0, 4, 0o104755),
        (4, 4, 2),
        (8, 4, 3),
        (12, 4, 4),
        (16, 4, 5),
        (20, 4, 0),
        (24, 8, 6),
        (32, 8, 7),
        (40, 8, 8),
        (48, 8, u64::MAX),
        (56, 4, 99),
        (60, 8, 10),
        (72, 8, 11),
        (84, 8, 12),
        (92, 4, 99),
        (108, 4, 13),
    ];
    expect(&b, &fields);
    assert!(b[96..108].iter().chain(&b[112..]).all(|b| *b == 0));
    let b = encode_bucket(&[
        NameEntry { ino: Ino(3), kind: FileType::Directory, slot: 4, name: b"ab".to_vec() },
        NameEntry { ino: Ino(5), kind: FileType::Socket, slot: 6, name: b"c".to_vec() },
    ]);
    expect(
        &b,
        &[(0, 8, 3), (8, 2, 4), (10, 1, 4), (11, 1, 2), (14, 8, 5), (22, 2, 12), (24, 1, 6), (25, 1, 1)],
    );
    assert_eq!((&b[12..14], &b[26..]), (&b"ab"[..], &b"c"[..]));
    // SipHash-1-3 with the key 00 01 ... 0f.
    let key: [u8; 16] = std::array::from_fn(|i| i as u8);
    assert_eq!(name_hash(&key, b""), 0xabac_0158_050f_c4dc >> 9);
}

#[test]
fn extended_attributes() {
    let name = [b'n'; 255];
    let value: Vec<u8> = (0..10_000u32).map(|i| (i / 3) as u8).collect();
    let items = encode_xattr(&name, &value);
    let lengths: Vec<usize> = items.iter().map(Vec::len).collect();
    assert_eq!(lengths, [4000, 4000, 2263]);
    assert_eq!(xattr_parts(name.len(), value.len()), 3);
    expect(&items[0], &[(0, 4, 10_000), (4, 1, 255), (5, 3, 0)]);
    assert_eq!((&items[0][8..263], &items[0][263..]), (&name[..], &value[..3737]));
    assert_eq!((&items[1][..], &items[2][..]), (&value[3737..7737], &value[7737..]));
    let head = decode_xattr(&items[0]).unwrap();
    assert_eq!((head.name, head.size, head.start), (&name[..], 10_000, &value[..3737]));
    for bad in [&items[0][..3999], &items[1], &[], &[0; 8], &[&items[0][..], b"x"].concat()] {
        assert_eq!(decode_xattr(bad), None);
    }
    let key = [7; 16];
    let hash = xattr_hash(&key, b"user.a");
    assert_eq!(hash, name_hash(&key, b"user.a"));
    assert_eq!(xattr_key(Ino(9), hash, 2), Key::new(Ino(9), ItemKind::Xattr, hash * 256 + 2));
    assert_eq!(xattr_place(hash * 256 + 2), (hash, 2));
}

#[test]
fn maps() {
    let blocks = |start, len, birth| PageBlocks { start: BlockNr(start), len, birth: Lsn(birth) };
    let mut chunk = Chunk::default();
    chunk.pages[2] = PageEntry::Mapped(blocks(100, 4, 9), 55);
    chunk.pages[3] = PageEntry::Mapped(blocks(104, 1, 9), 66);
    chunk.pages[8] = PageEntry::Unwritten(blocks(200, 4, 10));
    let b = chunk.encode(4).unwrap();
    let runs = [
        (0, 1, 1),
        (1, 1, 2),
        (2, 1, 2),
        (3, 1, 2),
        (4, 1, 1),
        (5, 1, 1),
        (6, 1, 0),
        (7, 1, 0),
        (8, 6, 100),
        (14, 8, 9),
        (22, 4, 55),
        (26, 4, 66),
        (30, 1, 8),
        (32, 1, 0),
        (33, 1, 4),
        (36, 6, 200),
        (42, 8, 10),
    ];
    expect(&b, &runs);
    assert_eq!(b.len(), 50);
    let mut chunk = Chunk::default();
    for (i, page) in chunk.pages.iter_mut().enumerate() {
        *page = PageEntry::Mapped(blocks(1000 + 8 * i as u64, 4, 70 + i as u64), 5);
    }
    chunk.pages[1] = PageEntry::Unwritten(blocks(9, 4, 75));
    chunk.pages[2] = PageEntry::Hole;
    let b = chunk.encode(4).unwrap();
    let dense = [
        (0, 1, 2),
        (1, 1, 0),
        (2, 8, 70),
        (10, 6, 1000 | 1 << 44),
        (16, 4, 5),
        (20, 4, 0),
        (24, 6, 9 | 1 << 45),
        (30, 4, 0),
        (34, 4, 5),
        (38, 6, 0),
        (44, 4, 0),
        (48, 4, 0),
    ];
    expect(&b, &dense);
    assert_eq!(b.len(), 10 + 64 * 14);
}

#[test]
fn bitmaps_and_pending_list() {
    let mut words = [0; 128];
    mark(&mut words, 9, 1, true);
    let b = encode_piece(&words).unwrap();
    assert_eq!((b.len(), b[1]), (1024, 0b10));
    assert_eq!(encode_piece(&[u64::MAX; 128]), Some(vec![0xff]));
    assert_eq!(encode_piece(&[0; 128]), None);
    let entries = [
        PendingEntry { run: BlockRun::new(BlockNr(3), 4), used: true },
        PendingEntry { run: BlockRun::new(BlockNr(5), 6), used: false },
    ];
    let b = encode_pending(&entries);
    expect(&b, &[(0, 8, 3), (8, 4, 4), (12, 1, 1), (13, 8, 5), (21, 4, 6), (25, 1, 0)]);
}
