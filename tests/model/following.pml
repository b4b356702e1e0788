/*
 * After COMMIT, from the resume to the goodbye: a network that is lost as often as it likes until `breaks` are used up, new
 * connections, and messages by number.
 *
 * The destination has dialled, and dials again. An attempt counts at each side when it stands there, so the source may use
 * one that the destination has not got. What is on its way when the network is lost is lost; nobody is told of that, and
 * each side finds it out for itself, or hears of it by a newer attempt. Each row of the two tables of wire/session.py in
 * these states is here; test_model.py compares them.
 *
 * A message is its number. The source's last one is GOODBYE, the destination's only one is FINISHED. What is not
 * acknowledged is sent again on a new attempt.
 */
#ifndef BREAKS
#define BREAKS 2
#endif
#define SIGNALS 1

mtype = { RESUMED, STALLED, COMPLETE };
mtype source_state = RESUMED, husk_state = RESUMED;

byte breaks = BREAKS;
bool up = true;
byte source_attempt = 1, husk_attempt = 1;   /* what each side uses */
byte dialled = 1, dead = 0;                  /* the newest attempt; those up to this one are broken */

/* By the sender: how many there are, how many went out on this attempt, how many were acknowledged. */
byte source_posted = 0, source_sent = 0, source_heard = 0;
byte husk_posted = 0, husk_sent = 0, husk_heard = 0;
/* By the receiver: how many were taken in. */
byte source_got = 0, husk_got = 0;

typedef Message { byte attempt; byte number };
chan to_source = [1] of { Message };
chan to_destination = [1] of { Message };
chan pulse_to_source = [1] of { Message };
chan pulse_to_destination = [1] of { Message };
Message out;

inline source_happens(from, event, to) { assert(source_state == from); source_state = to; }
inline husk_happens(from, event, to) { assert(husk_state == from); husk_state = to; }
#define EVENT_RESUMED 0
#define EVENT_FINISHED 0
#define EVENT_LOST 0
#define EVENT_FAILED 0
#define EVENT_CANCELLED 0
#define EVENT_RECONNECTED 0

/* The source has heard FINISHED, and the destination everything up to GOODBYE. */
#define over (source_got == 1 && source_posted == husk_got && source_state == COMPLETE && husk_state == COMPLETE)

/* Into the network, which may have been lost. */
inline say(channel, using, what) {
    if
    :: up && using > dead -> out.attempt = using; out.number = what; channel!out
    :: else -> skip
    fi
}

/* The next one is taken in, one that was taken in already is passed over, and none is ever missing before it. */
inline take(got, what) {
    if
    :: what == got + 1 -> got = what
    :: what <= got -> skip
    :: else -> assert(false)
    fi
}

active proctype source() {
    Message in;
    bool told = false;
end:
    do
    :: atomic { source_posted < SIGNALS && source_got == 0 -> source_posted++ }
    :: atomic { source_attempt > dead && source_sent < source_posted && empty(to_destination) ->
        source_sent++; say(to_destination, source_attempt, source_sent) }
    :: atomic { empty(pulse_to_destination) && source_attempt > dead && husk_heard < source_got ->
        say(pulse_to_destination, source_attempt, source_got) }
    :: atomic { source_state != STALLED && nempty(to_source) -> to_source?in;
        if
        :: in.attempt == source_attempt -> take(source_got, in.number);
            if
            :: source_got == 1 && source_state == RESUMED -> source_happens(RESUMED, EVENT_FINISHED, COMPLETE); source_posted++
            :: else -> skip
            fi
        :: else -> skip
        fi }
    :: atomic { nempty(pulse_to_source) -> pulse_to_source?in;
        if :: in.number > source_heard -> source_heard = in.number :: else -> skip fi }
    :: atomic { source_state == RESUMED && source_attempt <= dead -> source_happens(RESUMED, EVENT_LOST, STALLED) }
    :: atomic { source_state == RESUMED && !told -> told = true; source_happens(RESUMED, EVENT_CANCELLED, RESUMED) }
    :: atomic { source_state == RESUMED && !told -> told = true; source_happens(RESUMED, EVENT_RESUMED, RESUMED) }
    :: atomic { source_state == STALLED && !told -> told = true; source_happens(STALLED, EVENT_CANCELLED, STALLED) }
    :: atomic { source_state == STALLED && !told -> told = true; source_happens(STALLED, EVENT_LOST, STALLED) }
    :: atomic { source_state == STALLED && !told -> told = true; source_happens(STALLED, EVENT_FAILED, STALLED) }
    /* An error of lm-serve's own, once: then it waits for new connections, as the other side finds out by silence. */
    :: atomic { source_state == RESUMED && !told -> told = true; dead = dialled; source_happens(RESUMED, EVENT_FAILED, STALLED) }
    /* A newer attempt gets in, whether the loss of the last one was noticed or not. */
    :: atomic { up && dialled > dead && dialled > source_attempt ->
        if
        :: source_state == RESUMED ->
            source_happens(RESUMED, EVENT_LOST, STALLED); source_happens(STALLED, EVENT_RECONNECTED, RESUMED)
        :: source_state == STALLED -> source_happens(STALLED, EVENT_RECONNECTED, RESUMED)
        :: else -> skip
        fi;
        source_attempt = dialled; source_sent = source_heard }
    :: over -> break
    od
}

active proctype destination() {
    Message in;
    bool ended = false;
end:
    do
    /* Every page is here; with the network lost, that is so when the process has ended. */
    :: atomic { husk_state == RESUMED -> husk_happens(RESUMED, EVENT_FINISHED, COMPLETE); husk_posted++ }
    :: atomic { husk_state == STALLED && !ended -> ended = true;
        husk_happens(STALLED, EVENT_FINISHED, COMPLETE); husk_posted++ }
    :: atomic { husk_attempt > dead && husk_sent < husk_posted && empty(to_source) ->
        husk_sent++; say(to_source, husk_attempt, husk_sent) }
    :: atomic { empty(pulse_to_source) && husk_attempt > dead && source_heard < husk_got ->
        say(pulse_to_source, husk_attempt, husk_got) }
    /* What came on connections that this side does not use yet waits in them. */
    :: atomic { husk_state != STALLED && nempty(to_destination) && dialled == husk_attempt -> to_destination?in;
        if :: in.attempt == husk_attempt -> take(husk_got, in.number) :: else -> skip fi }
    :: atomic { nempty(pulse_to_destination) -> pulse_to_destination?in;
        if :: in.number > husk_heard -> husk_heard = in.number :: else -> skip fi }
    :: atomic { husk_state == RESUMED && husk_attempt <= dead -> husk_happens(RESUMED, EVENT_LOST, STALLED) }
    /* Dial, as long as that has come to nothing. */
    :: atomic { up && husk_state != RESUMED && husk_attempt <= dead && dialled <= dead && !over -> dialled++ }
    :: atomic { up && dialled > dead && source_attempt == dialled && husk_attempt < dialled ->
        if
        :: husk_state == STALLED -> husk_happens(STALLED, EVENT_RECONNECTED, RESUMED)
        :: else -> skip
        fi;
        husk_attempt = dialled; husk_sent = husk_heard }
    :: over -> break
    od
}

active proctype network() {
end:
    do
    :: atomic { breaks > 0 && up -> breaks--; up = false; dead = dialled;
        do :: nempty(to_source) -> to_source?out :: empty(to_source) -> break od;
        do :: nempty(to_destination) -> to_destination?out :: empty(to_destination) -> break od;
        do :: nempty(pulse_to_source) -> pulse_to_source?out :: empty(pulse_to_source) -> break od;
        do :: nempty(pulse_to_destination) -> pulse_to_destination?out :: empty(pulse_to_destination) -> break od }
    :: atomic { !up -> up = true }
    :: over -> break
    od
}

ltl all_is_over { <> over }
