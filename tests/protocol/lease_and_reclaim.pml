// SPDX-License-Identifier: Apache-2.0

// Leases, reclaims and the copies between them, as a model for SPIN: every order of the steps of readers,
// streams and the control plane, and the promises I1 to I5 of docs/invariants.md in every state.
//
// What is there
//   One peer device with two segments of one slot each, and two slots of host memory; a move from one segment
//   to the other stands for a move between peers. Three records of the object table, up to four generations.
//   The backing is LOSSY, SPILL or MANAGED_HOST. Copies and segments change state as in the code, which has
//   the same tables (src/core/copy_state.hpp, src/memory/pool.hpp): protocol_test.cpp compares them.
// Who acts
//   Reader   looks up, pins, checks, waits for a write that is under way, gives work to a stream, releases: a
//            lease, or a fetch. A fetch that waits asks the write's event how it ended.
//   Control  is who has the control lock: put (over an old generation too), erase, eviction, promotion, the
//            beginning of a reclaim, and the steps of `poll`.
//   Writing  is one copy on a stream, behind what it has to wait for; it may fail on its way.
//   Reading  is a reader's stream: its work may run long after the lease is released.
// How fine
//   One step is one access to what readers and the control plane share without a lock: a bucket's head and
//   version, an object's key, `next`, and word of pins and bits. What only the control lock's holder sees
//   goes along with an access. A pin and the look at the bits are one step, as the code's fetch_add is;
//   hiding a copy and looking at its pins are two. A slot holds the bytes of a generation, or poison after a
//   write that failed; a read that could run while its slot is written is an error at once.
// What is left out
//   - Weak memory: SPIN's is sequentially consistent. The thread sanitizer and races_test.cpp look at that.
//   - The order of steps within a `poll`: here they come in any order, the code's among them. But no move
//     begins from a copy whose write has failed: it would be tried until the failure is settled.
//   - Policies, rates, deadlines and sizes: chance decides among all that the rules allow.
//   - Local copies, which vouch for nothing; `external_host`; leases without a stream; the eviction of whole
//     objects from the host; wiping for tenants; lost devices; pins that are used up; copies that are refused
//     at once, which change nothing; drivers that have no event to give, for which the code asks again.
// How it is run
//   `ctest -L protocol`, or by hand
//     spin -a -DSPILL -DREADERS=2 lease_and_reclaim.pml
//     gcc -O2 -DSAFETY -DCOLLAPSE -o pan pan.c && ./pan -m100000
//   and after an error spin -t -p -g -DSPILL -DREADERS=2 lease_and_reclaim.pml shows the way to it. For
//   liveness: spin with -DLIVENESS too, gcc with -DNFAIR=3 for -DSAFETY, ./pan -a -f. With a -DBUG_... the
//   model has an error, which must be found.
// What was found, with SPIN 6.5.2: no error, in all of the states within these bounds
//                                                                                     states  depth   MB
//     -DLOSSY -DPUTS=2 -DFAILURES=1                                                  992,797    195  217
//     -DLOSSY -DERASES=1 -DRECLAIMS=2 -DFAILURES=1                                   926,225    149  208
//     -DLOSSY -DREADERS=2 -DFAILURES=1                                             1,723,177    161  241
//     -DLOSSY -DPUTS=2 -DREADS=2 -DERASES=1 -DEVICTIONS=1 -DRECLAIMS=0 -DFAILURES=1
//                                                                                  2,769,966    207  331
//     -DLOSSY -DKEYS=2 -DPUTS=4 -DERASES=1 -DRECLAIMS=0                            4,342,023    281  470
//     -DSPILL -DRECLAIMS=2 -DFAILURES=1                                            2,118,902    237  331
//     -DSPILL -DRECLAIMS=2 -DLEASES_ARE_KEPT                                         822,306    214  206
//     -DSPILL -DPUTS=2                                                             5,519,022    266  648
//     -DSPILL -DREADERS=2                                                          6,386,109    226  564
//     -DSPILL -DREADS=2 -DPROMOTIONS=1 -DEVICTIONS=1 -DFAILURES=1                  2,604,134    286  334
//     -DMANAGED_HOST -DPROMOTIONS=1 -DEVICTIONS=1 -DFAILURES=2                     4,615,597    297  566
//     -DMANAGED_HOST -DRECLAIMS=2 -DPROMOTIONS=1                                   2,858,934    189  393
//     -DMANAGED_HOST -DREADERS=2 -DRECLAIMS=0 -DPROMOTIONS=1 -DEVICTIONS=1         5,595,724    186  519
//   and for liveness
//     -DLOSSY -DRECLAIMS=2 -DFAILURES=1 -DWRITES=2                                   696,559    164  179
//     -DSPILL -DFAILURES=1 -DWRITES=5                                                619,521    301  184
//     -DMANAGED_HOST -DPROMOTIONS=1 -DWRITES=5                                       811,103    236  200
//   All of it, with the models that are broken on purpose, takes about two minutes of one core.

// --- bounds, each of which may be set with -D --------------------------------------------------------
// What is to happen happens at most so often, and at any time.

#ifndef READERS
#define READERS 1  // threads with a stream each; at most 2
#endif
#ifndef READS
#define READS 1  // of each reader
#endif
#ifndef KEYS
#define KEYS 1  // readers ask for key 1; key 2, of another bucket, may take over its records
#endif
#ifndef PUTS
#define PUTS 1
#endif
#ifndef ERASES
#define ERASES 0
#endif
#ifndef EVICTIONS
#define EVICTIONS 0
#endif
#ifndef PROMOTIONS
#define PROMOTIONS 0
#endif
#ifndef RECLAIMS
#define RECLAIMS 1  // of one or two segments each; at most 2
#endif
#ifndef FAILURES
#define FAILURES 0  // copies that fail on their way
#endif
#ifndef WRITES
#define WRITES 7  // copies in all, at most 7: an assertion says if that is too few
#endif

// --- what there is -----------------------------------------------------------------------------------

mtype = { none, filling, live, leaving };                      // CopyState
mtype = { segment_unmapped, segment_active, segment_fenced };  // SegmentState

// Records of the object table: an old object, a new one, and a twin that will replace one.
#define RECORDS 3

// A copy is named by a number: 2 * record on the peer, 2 * record + 1 on the host.
#define PEER 0
#define HOST 1
#define FIRST 2
#define LAST 7
#define copy_of(record, tier) (2 * (record) + (tier))
#define record_of(copy) ((copy) / 2)
#define other(copy) ((copy) ^ 1)
#define on_peer(copy) (((copy) & 1) == PEER)

// Slots 1 and 2 are on the peer, each fills the segment of its number; 3 and 4 are on the host.
#define SEGMENTS 2
#define POISON 0  // no generation's bytes

#define bit_of(number) (1 << (number))

// Over when all these copies and reads are: what a slot drains for, what a copy waits for on its stream.
typedef Events {
  byte writes;    // a set
  byte reads[2];  // of each reader's stream, its first so many
};

// A copy that was given to the writer's stream or to one in the background. It is over in one step: who
// could see it half done is caught in that step.
typedef Write {
  byte from;   // a slot; 0 is the writer's own memory
  byte to;     // a slot; 0 before it is given and when it is over
  byte bytes;  // the generation whose bytes it brings
  Events behind;
};

// A reader's work on its stream.
typedef Read {
  byte slot;    // 0 if there is none
  byte told;    // the generation that the reader was told
  byte behind;  // the write that it waits for on the device
};

// The object table. Readers see head, version, key, generation, next and used_by, and of each copy pins,
// visible and pending, which are one word of an object.
byte head[KEYS + 1];
byte version[KEYS + 1];
byte key[4];
byte generation[4];
byte next[4];
byte used_by[4];  // a set of readers' streams
bit created[4];
bit linked[4];
byte pins[8];
bit visible[8];
bit pending[8];
mtype state[8] = none;
byte slot[8];
byte ready[8];   // the write that completes it; 0 if that is known to be over
byte source[8];  // of a fill: the copy that it reads
bit moves[8];    // of a fill: the source goes when it has arrived

// Memory.
mtype segment[3] = segment_active;
byte content[5];  // by slot
byte owner[5];    // by slot: a copy, 0 if none
bit draining[5];
Events after[5];  // what a draining slot waits for

// Streams.
Write write[8];
byte writes;    // so many were given
byte over;      // the set of those that ended
byte failed;    // the set of those that ended badly
byte released;  // the set of those whose event was given back
Read work[2];
byte reads_given[2];
byte reads_done[2];
bit wrong[2];  // the last read brought other bytes than those of the generation that was told

// Reclaims, in segments.
byte reclaims;
byte asked[3];
byte returned[3];
bit finished[3];

byte puts_left = PUTS;
byte erases_left = ERASES;
byte evictions_left = EVICTIONS;
byte promotions_left = PROMOTIONS;
byte failures_left = FAILURES;

// What has happened, for the promises alone.
byte holds[2];           // the slot on which the reader has a lease
byte current[KEYS + 1];  // the generation that must be there; 0 if the key is not
bit may_miss[2];         // the key was away for a moment since the reader began to look
byte told_lost;          // the set of generations whose loss was told
byte unmapped;           // segments that were given back
byte credited;           // segments that reclaims were credited with
byte mapped_before[3];   // segments when the reclaim began

// A promise is broken if its condition is false: these are never set, and name it in what SPIN prints.
hidden byte I1, I2, I3, I4, I5;
#define promise(invariant, condition) assert(invariant || (condition))

// --- changes of state --------------------------------------------------------------------------------
// These are the only ones. A test compares them, and what a search reached of them, with the code's tables.

#define reached(what)                                      \
  c_code {                                                 \
    static int told;                                       \
    if (!told) { told = 1; printf("reached: " what "\n"); } \
  }
#define move_copy(copy, from, to)      \
  assert(state[copy] == from);         \
  state[copy] = to;                    \
  reached("copy " #from " -> " #to)
#define move_segment(number, from, to)         \
  assert(segment[number] == segment_##from);   \
  segment[number] = segment_##to;              \
  reached("segment " #from " -> " #to)

// --- questions ---------------------------------------------------------------------------------------

#define is_over(number) ((over & bit_of(number)) != 0)
#define has_failed(number) ((failed & bit_of(number)) != 0)
#define is_complete(number) (is_over(number) && !has_failed(number))
#define have_passed(events)                                                  \
  ((events.writes & ~over) == 0 && events.reads[0] <= reads_done[0] &&       \
   events.reads[1] <= reads_done[1])

#define is_mapped(number) (number > SEGMENTS || segment[number] != segment_unmapped)
#define is_fenced(number) (number <= SEGMENTS && segment[number] == segment_fenced)
#define is_drained(number) (segment[number] == segment_fenced && owner[number] == 0 && !draining[number])
#define mapped_segments ((segment[1] != segment_unmapped) + (segment[2] != segment_unmapped))
#define fenced_segments ((segment[1] == segment_fenced) + (segment[2] == segment_fenced))
#define is_open(reclaim) (asked[reclaim] != 0 && !finished[reclaim])
#define missing(reclaim) (is_open(reclaim) -> asked[reclaim] - returned[reclaim] : 0)
#define needed_segments (missing(1) + missing(2))

// Does the object survive without this copy? (Cache::elsewhere)
#define is_surely_elsewhere(copy)  \
  (state[other(copy)] == live && (ready[other(copy)] == 0 || is_complete(ready[other(copy)])))
#define is_nowhere_else(copy) (state[other(copy)] != live)

#define is_usable(number)                                                            \
  (owner[number] == 0 &&                                                             \
   (number > SEGMENTS || segment[number] == segment_active ||                        \
    (segment[number] == segment_unmapped && !is_open(1) && !is_open(2))))
#define has_room(tier) (tier == PEER -> (is_usable(1) || is_usable(2)) : (is_usable(3) || is_usable(4)))

// I4: a copy that a reader finds, and which brings the bytes, or whose failure is still to be told.
#define serves(copy)                                                                 \
  (visible[copy] && (content[slot[copy]] == generation[record_of(copy)] ||           \
                     (ready[copy] != 0 && !is_complete(ready[copy]))))
#define record_serves(record, k)                                                     \
  (linked[record] && key[record] == k && generation[record] == current[k] &&         \
   (serves(copy_of(record, PEER)) || serves(copy_of(record, HOST))))
#define is_readable(k) (record_serves(1, k) || record_serves(2, k) || record_serves(3, k))

#define any_copy(question) \
  (question(2) || question(3) || question(4) || question(5) || question(6) || question(7))
#define choose_copy(question)    \
  if                             \
  :: question(2) -> c = 2        \
  :: question(3) -> c = 3        \
  :: question(4) -> c = 4        \
  :: question(5) -> c = 5        \
  :: question(6) -> c = 6        \
  :: question(7) -> c = 7        \
  fi

// --- the control plane: one lock, so one process -----------------------------------------------------

inline assert_promises() {
  promise(I4, current[1] == 0 || is_readable(1));
#if KEYS > 1
  promise(I4, current[2] == 0 || is_readable(2))
#endif
}

inline forget_current(k) {
  current[k] = 0;
  if
  :: k == 1 -> may_miss[0] = 1; may_miss[1] = 1
  :: else
  fi
}

inline find(k) {
  old = head[k];
  do
  :: old != 0 && key[old] != k -> old = next[old]
  :: else -> break
  od
}

inline find_unused_record() {
  n = 1;
  do
  :: n <= RECORDS && created[n] -> n++
  :: else -> break
  od
}

// One of the usable slots of a tier: whether it is free, drains, or is of a new segment, is policy.
inline pick_slot(tier) {
  if
  :: tier == PEER && is_usable(1) -> s = 1
  :: tier == PEER && is_usable(2) -> s = 2
  :: tier == HOST && is_usable(3) -> s = 3
  :: tier == HOST && is_usable(4) -> s = 4
  fi;
  if
  :: s <= SEGMENTS && segment[s] == segment_unmapped -> move_segment(s, unmapped, active)
  :: else
  fi
}

inline forget_events(number) {
  draining[number] = 0;
  released = released | after[number].writes;
  after[number].writes = 0;
  after[number].reads[0] = 0;
  after[number].reads[1] = 0
}

// Into slot `s`. It waits for who still reads what that held, and for the write that completes its source.
inline begin_write(target, source_slot, source_ready) {
  writes++;
  assert(writes <= WRITES);
  slot[target] = s;
  owner[s] = target;
  ready[target] = writes;
  write[writes].from = source_slot;
  write[writes].to = s;
  write[writes].bytes = generation[record_of(target)];
#ifndef BUG_SLOT_IS_WRITTEN_UNDER_ITS_READERS
  write[writes].behind.writes = after[s].writes & ~over;
  write[writes].behind.reads[0] = (after[s].reads[0] > reads_done[0] -> after[s].reads[0] : 0);
  write[writes].behind.reads[1] = (after[s].reads[1] > reads_done[1] -> after[s].reads[1] : 0);
#endif
  if
  :: source_ready != 0 && !is_over(source_ready) ->
     write[writes].behind.writes = write[writes].behind.writes | bit_of(source_ready)
  :: else
  fi;
  forget_events(s);
  s = 0
}

inline begin_fill(origin, target, is_move) {
  pins[origin]++;
  begin_write(target, slot[origin], ready[origin]);
  source[target] = origin;
  moves[target] = is_move;
  move_copy(target, none, filling)
#ifdef BUG_SHOWN_BEFORE_COMPLETE
  ;
  visible[target] = 1
#endif
}

inline create(k, number) {
  created[n] = 1;
  key[n] = k;
  generation[n] = number
}

inline forget_if_gone(record) {
  if
  :: created[record] && !linked[record] && state[copy_of(record, PEER)] == none &&
     state[copy_of(record, HOST)] == none ->
     created[record] = 0;
     used_by[record] = 0;
     generation[record] = 0
  :: else
  fi
}

inline unlink(record) {
  d_step {
    linked[record] = 0;
    if
    :: head[key[record]] == record -> head[key[record]] = next[record]
    :: else ->
       at = head[key[record]];
       do
       :: next[at] == record -> next[at] = next[record]; break
       :: else -> at = next[at]
       od;
       at = 0
    fi;
    assert_promises()
  };
  version[key[record]]++
}

inline reveal(shown) {
  d_step {
    visible[shown] = 1;
    pending[shown] = (ready[shown] != 0);
    if
    :: state[shown] == filling -> move_copy(shown, filling, live)
    :: else -> move_copy(shown, none, live)
    fi
  }
}

// Nobody can pin it any more. Its slot drains: for the work of each stream that was given some on the
// object, and for the copy's own write.
inline finish_leaving(gone) {
  d_step {
    if
    :: pins[gone] == 0 ->
       s = slot[gone];
#ifndef BUG_WORK_AFTER_RELEASE_IS_FORGOTTEN
       if
       :: (used_by[record_of(gone)] & 1) != 0 -> draining[s] = 1; after[s].reads[0] = reads_given[0]
       :: else
       fi;
       if
       :: (used_by[record_of(gone)] & 2) != 0 -> draining[s] = 1; after[s].reads[1] = reads_given[1]
       :: else
       fi;
#endif
       if
       :: ready[gone] != 0 -> draining[s] = 1; after[s].writes = bit_of(ready[gone])
       :: else
       fi;
       s = 0;
       free_slot(gone);
       move_copy(gone, leaving, none);
       forget_if_gone(record_of(gone))
    :: else
    fi
  }
}

inline free_slot(gone) {
  owner[slot[gone]] = 0;
  slot[gone] = 0;
  ready[gone] = 0
}

inline drop_copy(dropped) {
  d_step {
    visible[dropped] = 0;
    pending[dropped] = 0;
    move_copy(dropped, live, leaving);
    assert_promises()
  };
  finish_leaving(dropped)
}

inline retire(record) {
  retired = record;
  unlink(retired);
  if
  :: state[copy_of(retired, PEER)] == live -> drop_copy(copy_of(retired, PEER))
  :: else
  fi;
  if
  :: state[copy_of(retired, HOST)] == live -> drop_copy(copy_of(retired, HOST))
  :: else
  fi;
  retired = 0
}

inline tell_lost(record) {
  promise(I4, (told_lost & bit_of(generation[record])) == 0);
  promise(I4, current[key[record]] == generation[record]);
#ifndef LOSSY  // then only what was never written may be lost
  promise(I4, content[slot[copy_of(record, PEER)]] != generation[record]);
  promise(I4, content[slot[copy_of(record, HOST)]] != generation[record]);
#endif
  told_lost = told_lost | bit_of(generation[record]);
  forget_current(key[record])
}

inline lose(record) {
#ifndef BUG_LOSS_IS_NOT_TOLD
  d_step { tell_lost(record) };
#endif
#ifdef BUG_LOSS_IS_TOLD_TWICE
  d_step { tell_lost(record) };
#endif
  retire(record)
}

// An object of one copy, or two if its bytes were on a GPU. Refused if there is no room.
inline give_put(k) {
  create(k, made + 1);
  if
#ifdef MANAGED_HOST
  :: has_room(HOST) ->
     pick_slot(HOST);
     begin_write(copy_of(n, HOST), 0, 0);
     if
     :: has_room(PEER) -> pick_slot(PEER); begin_write(copy_of(n, PEER), 0, 0)
     :: true
     fi
#else
  :: has_room(PEER) -> pick_slot(PEER); begin_write(copy_of(n, PEER), 0, 0)
#endif
#ifdef SPILL
  :: has_room(HOST) -> pick_slot(HOST); begin_write(copy_of(n, HOST), 0, 0)
#endif
  :: else
  fi;
  if
  :: ready[copy_of(n, PEER)] == 0 && ready[copy_of(n, HOST)] == 0 -> forget_if_gone(n); n = 0
  :: else -> made++
  fi
}

inline put(k) {
  atomic {
    puts_left > 0 -> puts_left--;
    find_unused_record();
    if
    :: n <= RECORDS -> give_put(k)
    :: else -> n = 0
    fi;
    if
    :: n != 0 -> find(k)
    :: else
    fi
  };
#ifdef BUG_OLD_GOES_BEFORE_NEW
  if
  :: old != 0 -> retire(old); old = 0
  :: else
  fi;
#endif
  if
  :: n != 0 ->
     if
     :: ready[copy_of(n, PEER)] != 0 -> reveal(copy_of(n, PEER))
     :: else
     fi;
     if
     :: ready[copy_of(n, HOST)] != 0 -> reveal(copy_of(n, HOST))
     :: else
     fi;
     link(n);
     if
     :: old != 0 -> retire(old); old = 0
     :: else
     fi;
     n = 0
  :: else
  fi
}

inline link(record) {
  next[record] = head[key[record]];
  d_step {
    head[key[record]] = record;
    linked[record] = 1;
    current[key[record]] = generation[record]
  }
}

inline erase(k) {
  atomic {
    erases_left > 0 -> erases_left--;
    find(k);
    if
    :: old != 0 -> forget_current(k)
    :: else
    fi
  };
  if
  :: old != 0 -> retire(old); old = 0
  :: else
  fi
}

// A copy that was shown with its completion event: is it complete?
#define is_unsettled(copy) (state[copy] == live && pending[copy] && is_over(ready[copy]))
inline settle_pending() {
  atomic {
    choose_copy(is_unsettled);
    if
    :: has_failed(ready[c])
    :: else -> pending[c] = 0; c = 0
    fi
  };
  if
  :: c == 0
  :: c != 0 && is_nowhere_else(c) -> lose(record_of(c)); c = 0
  :: else -> drop_copy(c); c = 0
  fi
}

// Its event goes back when no reader can have seen the copy as pending and be about to wait for it.
#ifdef BUG_EVENT_GOES_BACK_UNDER_A_READER
#define is_spent(copy) (state[copy] == live && ready[copy] != 0 && !pending[copy])
#else
#define is_spent(copy) (state[copy] == live && ready[copy] != 0 && !pending[copy] && pins[copy] == 0)
#endif
inline release_event() {
  d_step {
    choose_copy(is_spent);
    released = released | bit_of(ready[c]);
    ready[c] = 0;
    c = 0
  }
}

#define is_filled(copy) (state[copy] == filling && is_over(ready[copy]))
inline finish_fill() {
  atomic {
    choose_copy(is_filled);
    from = source[c];
    pins[from]--;
    is_move = moves[c];
    is_wanted = !has_failed(ready[c]) && linked[record_of(from)] && state[from] == live &&
                (ready[from] == 0 || is_complete(ready[from])) && (is_move || !is_fenced(slot[c]));
    released = released | bit_of(ready[c]);
    ready[c] = 0;
    source[c] = 0;
    moves[c] = 0;
    if
    :: is_wanted
    :: else ->
       free_slot(c);
       move_copy(c, filling, none);
       forget_if_gone(record_of(c))
    fi
  };
  if
  :: is_wanted ->
     reveal(c);
     if
     :: is_move && record_of(from) == record_of(c) -> drop_copy(from)
     :: is_move && record_of(from) != record_of(c) -> link(record_of(c)); retire(record_of(from))
     :: else
     fi
  :: else
  fi;
  d_step {
    c = 0;
    from = 0;
    is_move = 0;
    is_wanted = 0
  }
}

#define is_unpinned(copy) (state[copy] == leaving && pins[copy] == 0)

// What has drained is free.
#define has_drained(number) (draining[number] && have_passed(after[number]))
inline collect() {
  d_step {
    if
    :: has_drained(1) -> forget_events(1)
    :: has_drained(2) -> forget_events(2)
    :: has_drained(3) -> forget_events(3)
    :: has_drained(4) -> forget_events(4)
    fi
  }
}

// More than is needed is not fenced; which segment is cheapest is policy.
inline fence_cheapest() {
  atomic {
    if
    :: fenced_segments < needed_segments && segment[1] == segment_active -> move_segment(1, active, fenced)
    :: fenced_segments < needed_segments && segment[2] == segment_active -> move_segment(2, active, fenced)
    fi
  }
}

#define moves_already(copy)                                                            \
  (source[2] == copy && moves[2] || source[3] == copy && moves[3] ||                   \
   source[4] == copy && moves[4] || source[5] == copy && moves[5] ||                   \
   source[6] == copy && moves[6] || source[7] == copy && moves[7])

// The only copy goes to another segment, or to the host.
inline move_away() {
  atomic {
    find_unused_record();
    if
    :: n <= RECORDS && has_room(PEER) ->
       create(key[record_of(c)], generation[record_of(c)]);
       pick_slot(PEER);
       begin_fill(c, copy_of(n, PEER), 1)
    :: state[other(c)] == none && has_room(HOST) ->
       pick_slot(HOST);
       begin_fill(c, other(c), 1)
    :: else
    fi;
    n = 0
  }
}

#ifdef LOSSY
#define may_go(copy) (is_surely_elsewhere(copy) || is_nowhere_else(copy))
#elif defined(BUG_PERHAPS_IS_TAKEN_FOR_SURELY)
#define may_go(copy) (!is_nowhere_else(copy) || may_move(copy))
#else
#define may_go(copy) (is_surely_elsewhere(copy) || is_nowhere_else(copy) && may_move(copy))
#endif
// A move from a copy that failed would be tried again and again until it is settled.
#define may_move(copy) (!moves_already(copy) && !has_failed(ready[copy]))
#define is_to_be_emptied(number) \
  (is_fenced(number) && owner[number] != 0 && state[owner[number]] == live && may_go(owner[number]))
inline empty_segment() {
  atomic {
    if
    :: is_to_be_emptied(1) -> c = owner[1]
    :: is_to_be_emptied(2) -> c = owner[2]
    fi
  };
  if
  :: !is_nowhere_else(c) -> drop_copy(c)
#ifdef LOSSY
  :: is_nowhere_else(c) -> lose(record_of(c))
#else
  :: is_nowhere_else(c) ->
     move_away();
#ifdef BUG_DROPPED_BEFORE_THE_SPILL_ARRIVED
     if
     :: moves_already(c) -> drop_copy(c)
     :: else
     fi
#endif
#endif
  fi;
  c = 0
}

#ifdef BUG_UNMAPPED_BEFORE_DRAINED
#define may_unmap(number) (is_fenced(number) && owner[number] == 0)
#else
#define may_unmap(number) is_drained(number)
#endif
inline unmap_drained() {
  d_step {
    if
    :: may_unmap(1) -> s = 1
    :: may_unmap(2) -> s = 2
    fi;
#ifdef BUG_CREDITED_BEFORE_UNMAPPED
    credit();
#endif
    assert_unused(s);
    content[s] = POISON;
    move_segment(s, fenced, unmapped);
    unmapped++;
#ifndef BUG_CREDITED_BEFORE_UNMAPPED
    credit();
#endif
    s = 0
  }
}

inline assert_unused(number) {
  promise(I1, holds[0] != number && holds[1] != number);
  promise(I1, work[0].slot != number && work[1].slot != number);
  w = 1;
  do
  :: w > writes -> break
  :: else -> promise(I1, write[w].from != number && write[w].to != number); w++
  od;
  w = 0
}

inline credit() {
  if
  :: is_open(1) && returned[1] < asked[1] -> returned[1]++; credited++
  :: else ->
     if
     :: is_open(2) && returned[2] < asked[2] -> returned[2]++; credited++
     :: else
     fi
  fi;
  promise(I5, credited <= unmapped)
}

#define is_fulfilled(number) (is_open(number) && (returned[number] >= asked[number] || mapped_segments == 0))
inline finish_reclaim() {
  d_step {
    if
    :: is_fulfilled(1) -> w = 1
    :: is_fulfilled(2) -> w = 2
    fi;
    finished[w] = 1;
    promise(I5, mapped_segments + returned[w] <= mapped_before[w]);
    w = 0
  }
}

inline begin_reclaim() {
  atomic {
    reclaims < RECLAIMS -> reclaims++;
    if
    :: asked[reclaims] = 1
    :: asked[reclaims] = 2
    fi;
    mapped_before[reclaims] = mapped_segments
  }
}

#define may_climb(copy) \
  (!on_peer(copy) && linked[record_of(copy)] && state[copy] == live && state[other(copy)] == none)
inline promote() {
  atomic {
    promotions_left > 0 && has_room(PEER) && any_copy(may_climb) -> promotions_left--;
    choose_copy(may_climb);
    pick_slot(PEER);
    begin_fill(c, other(c), 0);
    c = 0
  }
}

// For another object, which the model does not have.
#ifdef LOSSY
#define may_be_evicted(copy) \
  (is_idle(copy) && (is_surely_elsewhere(copy) || is_nowhere_else(copy)))
#else
#define may_be_evicted(copy) (is_idle(copy) && is_surely_elsewhere(copy))
#endif
#define is_idle(copy) (on_peer(copy) && state[copy] == live && pins[copy] == 0 && !is_fenced(slot[copy]))
inline evict() {
  atomic {
    evictions_left > 0 && any_copy(may_be_evicted) -> evictions_left--;
    choose_copy(may_be_evicted)
  };
  if
  :: is_nowhere_else(c) -> lose(record_of(c))
  :: else -> drop_copy(c)
  fi;
  c = 0
}

#ifdef BUG_READ_IS_JUDGED_BY_THE_COPYS_STATE
byte judged;
inline judge() {
  atomic {
    judged != 0 && !any_copy(is_unsettled);
    find(1);
    promise(I2, !(old != 0 && generation[old] == 1 && state[copy_of(old, judged % 2)] == live && wrong[0]));
    judged = 0;
    old = 0
  }
}
#endif

active proctype Control() {
  byte c, s, n, old, at, from, w, made, retired;
  bit is_move, is_wanted;
end:
  do
  :: put(1)
#if KEYS > 1
  :: put(2)
#endif
  :: erase(1)
  :: evict()
  :: begin_reclaim()
  // What `poll` does. The code does it in one order; here it is done in any.
  :: settle_pending()
  :: release_event()
  :: finish_fill()
#ifndef BUG_LEAVING_IS_NOT_LOOKED_AT_AGAIN
  :: atomic { choose_copy(is_unpinned); finish_leaving(c); c = 0 }
#endif
  :: collect()
  :: fence_cheapest()
  :: empty_segment()
  :: unmap_drained()
  :: finish_reclaim()
  :: promote()
#ifdef BUG_READ_IS_JUDGED_BY_THE_COPYS_STATE
  :: judge()
#endif
  :: timeout -> break
  od;
#ifndef LIVENESS
  // Nothing moves any more, so nothing is left but what a lease holds.
  promise(I1, !is_fenced(1) || holds[0] == 1 || holds[1] == 1);
  promise(I1, !is_fenced(2) || holds[0] == 2 || holds[1] == 2);
  promise(I5, fenced_segments > 0 || !is_open(1) && !is_open(2));
  c = FIRST;
  do
  :: c > LAST -> break
  :: else -> assert(state[c] == none || state[c] == live || state[c] == leaving && pins[c] > 0); c++
  od
#endif
}

// --- what runs on streams ----------------------------------------------------------------------------

#define may_write(number) (write[number].to != 0 && have_passed(write[number].behind))
#define may_read(number) \
  (work[number].slot != 0 && (work[number].behind == 0 || is_over(work[number].behind)))

#define is_read_meanwhile(reader) (may_read(reader) && work[reader].slot == write[me].to)
#define is_being_written(number) (may_write(number) && write[number].to == work[me].slot)

// One copy. Who reads a slot that is written meanwhile gets a mix, so that is wrong at once.
proctype Writing(byte me) {
  byte i;
end:
  atomic {
    may_write(me);
    promise(I1, is_mapped(write[me].to) && is_mapped(write[me].from));
    promise(I3, !(is_read_meanwhile(0) && work[0].told == write[me].bytes));
    promise(I3, !(is_read_meanwhile(1) && work[1].told == write[me].bytes));
    promise(I2, !is_read_meanwhile(0) && !is_read_meanwhile(1));
    i = 1;
    do
    :: i > writes -> break
    :: else ->
       promise(I2, i == me || !may_write(i) || write[i].from != write[me].to && write[i].to != write[me].to);
       i++
    od;
    i = 0;
    if
    :: true ->
       content[write[me].to] = (write[me].from == 0 -> write[me].bytes : content[write[me].from])
    :: failures_left > 0 ->
       failures_left--;
       failed = failed | bit_of(me);
       content[write[me].to] = POISON
    fi;
    over = over | bit_of(me);
    write[me].from = 0;
    write[me].to = 0;
    write[me].bytes = 0;
    write[me].behind.writes = 0;
    write[me].behind.reads[0] = 0;
    write[me].behind.reads[1] = 0
  }
}

proctype Reading(byte me) {
end:
  do
  :: d_step {
       may_read(me);
       promise(I1, is_mapped(work[me].slot));
       promise(I3, !is_being_written(1) && !is_being_written(2) && !is_being_written(3));
       promise(I3, !is_being_written(4) && !is_being_written(5) && !is_being_written(6));
       promise(I3, !is_being_written(7));
       wrong[me] = (content[work[me].slot] != work[me].told);
       promise(I2, !wrong[me] || work[me].behind != 0 && has_failed(work[me].behind));
       work[me].slot = 0;
       work[me].told = 0;
       work[me].behind = 0;
       reads_done[me]++
     }
  od
}

// --- the read path: no lock --------------------------------------------------------------------------

// ObjectTable::find_and_pin: leaves the record in `i`, the pinned copy in `c`; `i` is 0 after a miss.
inline find_and_pin() {
  c = 0;
again:
  before = version[1];
  i = head[1];
  do
  :: i == 0 ->
     if
#ifndef BUG_MISS_IS_NOT_DOUBTED
     :: version[1] != before -> goto again
#endif
     :: else -> promise(I4, may_miss[me]); break
     fi
  :: else ->
#if KEYS > 1
     if
     :: key[i] != 1 -> goto walk_on
     :: else
     fi;
#endif
     if
     :: visible[copy_of(i, PEER)] -> c = copy_of(i, PEER)
     :: !visible[copy_of(i, PEER)] && visible[copy_of(i, HOST)] -> c = copy_of(i, HOST)
     :: else -> goto walk_on
     fi;
     atomic {
       pins[c]++;
       early = pending[c];
       if
#ifndef BUG_PIN_IS_NOT_CHECKED
       :: !visible[c] -> early = 0; goto led_astray
#endif
       :: else
       fi
     };
#if KEYS > 1 && !defined(BUG_KEY_IS_NOT_CHECKED)
     if
     :: key[i] != 1 -> goto led_astray
     :: else
     fi;
#endif
     break;
led_astray:
     atomic { pins[c]--; c = 0; early = 0 };
     i = head[1];
     goto walked;
walk_on:
     i = next[i];
walked:
     skip
  od
}

#define has_event(copy) (ready[copy] != 0 && (released & bit_of(ready[copy])) == 0)

proctype Reader(byte me) {
  byte looks, i, before, c, told;
  bit early;
  do
  :: looks == READS -> break
  :: looks < READS ->
     looks++;
     may_miss[me] = (current[1] == 0);
     find_and_pin();
     before = 0;
     if
     :: i == 0
     :: else ->
        atomic {
          told = generation[i];
          promise(I2, key[i] == 1 && told != 0 && slot[c] != 0);
          holds[me] = slot[c];
          used_by[i] = used_by[i] | bit_of(me)
        };
        atomic {
          work[me].slot == 0;
          promise(I3, !early || has_event(c));
          work[me].slot = slot[c];
          work[me].told = told;
          if
          :: early -> work[me].behind = ready[c]
          :: else
          fi;
          reads_given[me]++
        };
#ifndef BUG_READ_IS_JUDGED_BY_THE_COPYS_STATE
        if
        :: early ->  // a fetch that waits keeps its pin until it knows how the write ended
           atomic {
             reads_done[me] == reads_given[me];
             promise(I3, has_event(c));
             promise(I2, !wrong[me] || has_failed(ready[c]))
           }
        :: true
        fi;
#endif
#ifdef LEASES_ARE_KEPT
        if
        :: looks == READS -> goto end
        :: true
        fi;
#endif
        d_step {
          holds[me] = 0;
          pins[c]--
        };
#ifdef BUG_READ_IS_JUDGED_BY_THE_COPYS_STATE
        if
        :: early -> reads_done[me] == reads_given[me]; judged = c; judged == 0
        :: true
        fi
#endif
     fi;
     d_step {
       i = 0;
       c = 0;
       told = 0;
       early = 0;
       may_miss[me] = 0;
       wrong[me] = 0
     }
  od;
end:
  skip
}

init {
  atomic {
    byte id = 1;
    do
    :: id > WRITES -> break
    :: else -> run Writing(id); id++
    od;
    id = 0;
    do
    :: id >= READERS -> break
    :: else -> run Reader(id); run Reading(id); id++
    od;
    id = 0
  }
}

// Given that leases are released and copies end.
#ifdef LIVENESS
ltl every_reclaim_is_finished {
  [] (reclaims >= 1 -> <> finished[1]) && [] (reclaims >= 2 -> <> finished[2])
}
#endif
