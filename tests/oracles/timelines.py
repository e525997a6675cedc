"""Small runs of one GPU with every instant worked out by hand, in nanoseconds.

Assumptions:

1.  The host runs the program line by line from instant 0. Each line costs the host its enqueue time (COSTS) and is in
    its stream at the end of that time.
2.  A kernel starts at the latest of: its line enqueued, the kernel before it in its stream ended, every event that its
    stream was told to wait for before it fired. One line is one launch; a captured graph would be one line.
3.  A copy starts at the latest of the same three, on the one engine. It lasts
    [start-up, only if the engine was idle] + descriptor + bytes / rate, rounded half up.
    The engine was not idle if this copy starts at the very instant at which the previous one ends. The copies are tiny
    for the arithmetic's sake: no size passes by the engine here (small_copy_bytes = 0).
4.  record fires when everything before it in its stream has ended (not before the record is enqueued); wait holds back
    what is enqueued in its stream after it. Both cost host time and take no time in the stream.
5.  read_back blocks the host from its line until READ_BACK after the named kernel has ended. It costs nothing else; it
    always stands right behind the launch of its kernel, so the host is never late for it.
6.  Order inside a layer, as the semantics say: demand copies, their event; prefetches, their event; wait for the demand
    copies; experts; the next layer's attention and router; read-back of the router.
7.  A token starts at 0 (the host holds the previous id) and ends with the read-back of the head.
8.  Classes of the named sum: attention (attention, router, head: all dense work) or experts while such a kernel runs;
    else exposed copy if the next kernel in the compute stream needs a copy that is enqueued and has not ended (whether
    or not that kernel is enqueued yet); else host. Host is given in two parts: enqueueing, and blocked in a read-back.
    Nothing here is left for idle. The other reading of "the next kernel waits for a copy", only once that kernel is
    enqueued too, gives the figures under `classes_if_waiting_needs_the_kernel_enqueued`.

A program line is (operation, stream, name, number or None): kernel with its GPU time, copy with its bytes, record,
wait, read_back. `needs` names for each kernel the copies that it cannot start without.
"""

from __future__ import annotations

from dataclasses import dataclass, field

COSTS = {
    "copy": 4,  # enqueue_copy_ns
    "kernel": 6,  # enqueue_kernel_ns, one eager launch
    "record": 1,  # record_event_ns
    "wait": 2,  # wait_event_ns
    "read_back": 0,
}
READ_BACK = 20  # read_back_ns
START_UP = 15  # copy_start_up_ns
DESCRIPTOR = 3  # copy_descriptor_ns
ONE_BYTE_PER_NS = 1_000_000_000  # bytes per second

Line = tuple[str, str, str, int | None]


@dataclass(frozen=True)
class Timeline:
    name: str
    program: tuple[Line, ...]
    ran: dict[str, tuple[int, int]]  # kernel or copy: start, end on the GPU or the engine
    returned: dict[str, int]  # kernel: the host comes back from its read-back
    classes: dict[str, int]
    needs: dict[str, tuple[str, ...]]
    classes_if_waiting_needs_the_kernel_enqueued: dict[str, int]
    bytes_per_s: int = ONE_BYTE_PER_NS
    engine_order: tuple[str, ...] = field(default=())  # where two streams share the engine


# (a) On demand: one layer, two experts of 100 bytes, both missing.
#     host  0-6 attention, 6-12 router, blocked 12-86, 86-90 copy 0, 90-94 copy 1, 94-95 record, 95-97 wait,
#           97-103 experts, 103-109 head, blocked 109-401
#     GPU   attention 6-56, router 56-66 | ids on the host 66 + 20 = 86
#     link  copy 0 from 90: 15 + 3 + 100 = 118, to 208 | copy 1 at once, no start-up: 103, to 311
#     GPU   experts 311-351, head 351-381 | id on the host 401
#     sum   attention 50 + 10 + 30 = 90; experts 40; exposed 90..311 = 221; enqueue 0..6 and 86..90 = 10;
#           read-back 66..86 and 381..401 = 40; together 401
ON_DEMAND = Timeline(
    name="on demand, one layer, two experts",
    program=(
        ("kernel", "compute", "attention 0", 50),
        ("kernel", "compute", "router 0", 10),
        ("read_back", "compute", "router 0", None),
        ("copy", "copy", "expert 0", 100),
        ("copy", "copy", "expert 1", 100),
        ("record", "copy", "copied", None),
        ("wait", "compute", "copied", None),
        ("kernel", "compute", "experts 0", 40),
        ("kernel", "compute", "head", 30),
        ("read_back", "compute", "head", None),
    ),
    ran={
        "attention 0": (6, 56),
        "router 0": (56, 66),
        "expert 0": (90, 208),
        "expert 1": (208, 311),
        "experts 0": (311, 351),
        "head": (351, 381),
    },
    returned={"router 0": 86, "head": 401},
    needs={"experts 0": ("expert 0", "expert 1")},
    classes={"attention": 90, "experts": 40, "exposed_copy": 221, "enqueue": 10, "read_back": 40},
    # the experts are enqueued at 103: 90..103 goes to the host
    classes_if_waiting_needs_the_kernel_enqueued={
        "attention": 90,
        "experts": 40,
        "exposed_copy": 208,
        "enqueue": 23,
        "read_back": 40,
    },
)

# (b) Two layers: one miss of 100 bytes at layer 0; layer 1's expert, 60 bytes, is prefetched behind it and is right.
#     host  as in (a) to 86; 86-90 demand, 90-91 record, 91-95 prefetch, 95-96 record, 96-98 wait, 98-104 experts 0,
#           104-110 attention 1, 110-116 router 1, blocked 116-358; 358-360 wait, 360-366 experts 1, 366-372 head
#     link  demand 90-208 | prefetch at once: 3 + 60 = 63, 208-271
#     GPU   experts 0 208-248, attention 1 248-328, router 1 328-338 | ids on the host 358
#           experts 1 when enqueued: 366-406 (the prefetch has long arrived), head 406-436 | id on the host 456
#     sum   attention 50 + 10 + 80 + 10 + 30 = 180; experts 80; exposed 90..208 = 118;
#           enqueue 0..6, 86..90, 358..366 = 18; read-back 66..86, 338..358, 436..456 = 60; together 456
PREFETCH_OVERLAPS = Timeline(
    name="a prefetch behind a demand copy overlaps compute",
    program=(
        ("kernel", "compute", "attention 0", 50),
        ("kernel", "compute", "router 0", 10),
        ("read_back", "compute", "router 0", None),
        ("copy", "copy", "demand 0", 100),
        ("record", "copy", "demand 0 copied", None),
        ("copy", "copy", "prefetch 1", 60),
        ("record", "copy", "prefetch 1 copied", None),
        ("wait", "compute", "demand 0 copied", None),
        ("kernel", "compute", "experts 0", 40),
        ("kernel", "compute", "attention 1", 80),
        ("kernel", "compute", "router 1", 10),
        ("read_back", "compute", "router 1", None),
        ("wait", "compute", "prefetch 1 copied", None),
        ("kernel", "compute", "experts 1", 40),
        ("kernel", "compute", "head", 30),
        ("read_back", "compute", "head", None),
    ),
    ran={
        "attention 0": (6, 56),
        "router 0": (56, 66),
        "demand 0": (90, 208),
        "prefetch 1": (208, 271),
        "experts 0": (208, 248),
        "attention 1": (248, 328),
        "router 1": (328, 338),
        "experts 1": (366, 406),
        "head": (406, 436),
    },
    returned={"router 0": 86, "router 1": 358, "head": 456},
    needs={"experts 0": ("demand 0",), "experts 1": ("prefetch 1",)},
    classes={"attention": 180, "experts": 80, "exposed_copy": 118, "enqueue": 18, "read_back": 60},
    # experts 0 is enqueued at 104: 90..104 goes to the host
    classes_if_waiting_needs_the_kernel_enqueued={
        "attention": 180,
        "experts": 80,
        "exposed_copy": 104,
        "enqueue": 32,
        "read_back": 60,
    },
)

# (c) One slot. Layer 1's expert, 200 bytes, is prefetched into the slot that layer 0's expert is computed from, so the
#     copy waits for the event behind experts 0 (write after read).
#     host  to 86 as in (a); 86-90 demand, 90-91 record, 91-93 wait, 93-99 experts 0, 99-100 record "slot free",
#           100-102 the copy stream waits, 102-106 prefetch, 106-107 record, 107-113 attention 1, 113-119 router 1,
#           blocked 119-358; 358-360 wait, 360-366 experts 1, 366-372 head
#     link  demand 90-208 | prefetch not at 208 but when experts 0 has ended, at 248; the engine has been idle:
#           15 + 3 + 200 = 218, to 466 (without the hazard 208 + 203 = 411)
#     GPU   experts 0 208-248, attention 1 248-328, router 1 328-338 | ids 358 | experts 1 466-506, head 506-536 | 556
#     sum   attention 180; experts 80; exposed 90..208 and 338..466 = 246; enqueue 0..6, 86..90 = 10;
#           read-back 66..86, 536..556 = 40; together 556
WRITE_AFTER_READ = Timeline(
    name="a copy waits for the kernel that reads its slot",
    program=(
        ("kernel", "compute", "attention 0", 50),
        ("kernel", "compute", "router 0", 10),
        ("read_back", "compute", "router 0", None),
        ("copy", "copy", "demand 0", 100),
        ("record", "copy", "demand 0 copied", None),
        ("wait", "compute", "demand 0 copied", None),
        ("kernel", "compute", "experts 0", 40),
        ("record", "compute", "slot free", None),
        ("wait", "copy", "slot free", None),
        ("copy", "copy", "prefetch 1", 200),
        ("record", "copy", "prefetch 1 copied", None),
        ("kernel", "compute", "attention 1", 80),
        ("kernel", "compute", "router 1", 10),
        ("read_back", "compute", "router 1", None),
        ("wait", "compute", "prefetch 1 copied", None),
        ("kernel", "compute", "experts 1", 40),
        ("kernel", "compute", "head", 30),
        ("read_back", "compute", "head", None),
    ),
    ran={
        "attention 0": (6, 56),
        "router 0": (56, 66),
        "demand 0": (90, 208),
        "prefetch 1": (248, 466),
        "experts 0": (208, 248),
        "attention 1": (248, 328),
        "router 1": (328, 338),
        "experts 1": (466, 506),
        "head": (506, 536),
    },
    returned={"router 0": 86, "router 1": 358, "head": 556},
    needs={"experts 0": ("demand 0",), "experts 1": ("prefetch 1",)},
    classes={"attention": 180, "experts": 80, "exposed_copy": 246, "enqueue": 10, "read_back": 40},
    # experts 0 is enqueued at 99, experts 1 at 366: exposed 99..208 and 366..466; 90..99 and 358..366 are enqueueing,
    # 338..358 is read-back
    classes_if_waiting_needs_the_kernel_enqueued={
        "attention": 180,
        "experts": 80,
        "exposed_copy": 209,
        "enqueue": 27,
        "read_back": 60,
    },
)

# (d) Everything resident, eager: nine launches of 2 ns of GPU time each, 6 ns of host time each.
#     GPU   each launch starts when it is enqueued: attention 6, 12, 18, 24; router 30-32 | ids 52
#           experts 58, 64, 70; head 76-78 | id 98
#     sum   attention 6 launches = 12; experts 3 = 6; read-back 32..52, 78..98 = 40;
#           enqueue 6 + 4 + 4 + 4 + 4 (to 30), 6 + 4 + 4 (to 70), 4 (to 76) = 40; together 98
LAUNCH_BOUND = Timeline(
    name="launch-bound decoding in eager mode",
    program=(
        ("kernel", "compute", "attention 0.0", 2),
        ("kernel", "compute", "attention 0.1", 2),
        ("kernel", "compute", "attention 0.2", 2),
        ("kernel", "compute", "attention 0.3", 2),
        ("kernel", "compute", "router 0", 2),
        ("read_back", "compute", "router 0", None),
        ("kernel", "compute", "experts 0.0", 2),
        ("kernel", "compute", "experts 0.1", 2),
        ("kernel", "compute", "experts 0.2", 2),
        ("kernel", "compute", "head", 2),
        ("read_back", "compute", "head", None),
    ),
    ran={
        "attention 0.0": (6, 8),
        "attention 0.1": (12, 14),
        "attention 0.2": (18, 20),
        "attention 0.3": (24, 26),
        "router 0": (30, 32),
        "experts 0.0": (58, 60),
        "experts 0.1": (64, 66),
        "experts 0.2": (70, 72),
        "head": (76, 78),
    },
    returned={"router 0": 52, "head": 98},
    needs={},
    classes={"attention": 12, "experts": 6, "exposed_copy": 0, "enqueue": 40, "read_back": 40},
    classes_if_waiting_needs_the_kernel_enqueued={
        "attention": 12,
        "experts": 6,
        "exposed_copy": 0,
        "enqueue": 40,
        "read_back": 40,
    },
)

# (e) Head of line: two wrong prefetches of 300 bytes stand before layer 1's demand copy of 100 bytes. The rate is
#     3 bytes per ns here, so 300 bytes take 100 ns and 100 bytes 33.33, rounded to 33. Layer 0's expert is resident.
#     host  to 86 as in (a); 86-90 prefetch a, 90-94 prefetch b, 94-100 experts 0, 100-106 attention 1,
#           106-112 router 1, blocked 112-250; 250-254 demand, 254-255 record, 255-257 wait, 257-263 experts 1,
#           263-269 head
#     link  prefetch a 90 + 15 + 3 + 100 = 208; prefetch b 208 + 103 = 311; demand 311 + 3 + 33 = 347
#           (without the prefetches it would run 254 + 15 + 3 + 33 = 305)
#     GPU   experts 0 100-140, attention 1 140-220, router 1 220-230 | ids 250 | experts 1 347-387, head 387-417 | 437
#     sum   attention 180; experts 80; exposed 254..347 = 93; enqueue 0..6, 86..100, 250..254 = 24;
#           read-back 66..86, 230..250, 417..437 = 60; together 437
HEAD_OF_LINE = Timeline(
    name="a demand copy behind two wrong prefetches",
    program=(
        ("kernel", "compute", "attention 0", 50),
        ("kernel", "compute", "router 0", 10),
        ("read_back", "compute", "router 0", None),
        ("copy", "copy", "prefetch a", 300),
        ("copy", "copy", "prefetch b", 300),
        ("kernel", "compute", "experts 0", 40),
        ("kernel", "compute", "attention 1", 80),
        ("kernel", "compute", "router 1", 10),
        ("read_back", "compute", "router 1", None),
        ("copy", "copy", "demand 1", 100),
        ("record", "copy", "demand 1 copied", None),
        ("wait", "compute", "demand 1 copied", None),
        ("kernel", "compute", "experts 1", 40),
        ("kernel", "compute", "head", 30),
        ("read_back", "compute", "head", None),
    ),
    ran={
        "attention 0": (6, 56),
        "router 0": (56, 66),
        "prefetch a": (90, 208),
        "prefetch b": (208, 311),
        "experts 0": (100, 140),
        "attention 1": (140, 220),
        "router 1": (220, 230),
        "demand 1": (311, 347),
        "experts 1": (347, 387),
        "head": (387, 417),
    },
    returned={"router 0": 86, "router 1": 250, "head": 437},
    needs={"experts 1": ("demand 1",)},
    classes={"attention": 180, "experts": 80, "exposed_copy": 93, "enqueue": 24, "read_back": 60},
    # experts 1 is enqueued at 263: 254..263 goes to the host
    classes_if_waiting_needs_the_kernel_enqueued={
        "attention": 180,
        "experts": 80,
        "exposed_copy": 84,
        "enqueue": 33,
        "read_back": 60,
    },
    bytes_per_s=3_000_000_000,
)

# (f) Two streams on one engine: it stays with the stream that it serves until nothing there is ready. The demand copy
#     is enqueued before the third prefetch and still goes last. Changing streams without a pause costs no start-up.
#     host  0-4 prefetch a, 4-8 prefetch b, 8-12 demand (its own stream), 12-16 prefetch c
#     link  a 4 + 118 = 122; b 122 + 103 = 225; c 225 + 103 = 328; demand 328 + 103 = 431
#     kernel experts: 16-17 record, 17-19 wait, 19-25 enqueued; runs 431-471 | id 491
#     sum   experts 40; exposed 12..431 = 419; enqueue 0..12 = 12 (no needed copy is enqueued before 12);
#           read-back 471..491 = 20; together 491
TWO_STREAMS_ONE_ENGINE = Timeline(
    name="one engine stays on the stream that it serves",
    program=(
        ("copy", "prefetch", "prefetch a", 100),
        ("copy", "prefetch", "prefetch b", 100),
        ("copy", "demand", "demand", 100),
        ("copy", "prefetch", "prefetch c", 100),
        ("record", "demand", "demand copied", None),
        ("wait", "compute", "demand copied", None),
        ("kernel", "compute", "experts 0", 40),
        ("read_back", "compute", "experts 0", None),
    ),
    ran={
        "prefetch a": (4, 122),
        "prefetch b": (122, 225),
        "prefetch c": (225, 328),
        "demand": (328, 431),
        "experts 0": (431, 471),
    },
    returned={"experts 0": 491},
    needs={"experts 0": ("demand",)},
    classes={"attention": 0, "experts": 40, "exposed_copy": 419, "enqueue": 12, "read_back": 20},
    # experts 0 is enqueued at 25
    classes_if_waiting_needs_the_kernel_enqueued={
        "attention": 0,
        "experts": 40,
        "exposed_copy": 406,
        "enqueue": 25,
        "read_back": 20,
    },
    engine_order=("prefetch a", "prefetch b", "prefetch c", "demand"),
)

TIMELINES = (ON_DEMAND, PREFETCH_OVERLAPS, WRITE_AFTER_READ, LAUNCH_BOUND, HEAD_OF_LINE, TWO_STREAMS_ONE_ENGINE)
