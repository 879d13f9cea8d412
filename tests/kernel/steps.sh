# What a case may do in the guest. `cell NAME SEED MEMBER...` sets the stage, the case's own lines follow, `cell_end` clears it.
# Facts are printed as "= key value", one a line; a case ends at the first thing that goes wrong, with the fact `error`.

MD=/sys/block/md0/md
TRIES=1200 # times 50 ms: how long anything is waited for

say() { echo "= $*"; }
die() {
    say error "$*"
    cat /proc/mdstat
    dmesg | tail -n 15
    exit 1
}
must() { out=$("$@" 2>&1) || die "$*: $(echo $out)"; }
await() { # a shell condition
    n=0
    until eval "$1"; do
        n=$((n + 1))
        [ $n -lt $TRIES ] || die "waited in vain for $1"
        usleep 50000
    done
}
is() { read -r word _ <"$MD/$1" 2>/dev/null && [ "$word" = "$2" ]; }

# How the array stands: what it lacks, from where it is to be resynced, what is marked, which member is where.
look() {
    for name in array_state degraded resync_start sync_action; do
        word=none
        [ -e $MD/$name ] && read -r word _ <$MD/$name
        say $name $word
    done
    bitmap=$(sed -n 's/^ *bitmap: //p' /proc/mdstat)
    say bitmap $bitmap
    [ -z "$bitmap" ] || marks
    number=0
    for member in $MEMBERS; do
        folder=$MD/dev-${member#/dev/}
        if [ -d $folder ]; then
            read -r slot <$folder/slot
            read -r state <$folder/state
            read -r recovered <$folder/recovery_start
            say member.$number $slot $state $recovered
        else
            say member.$number out
        fi
        number=$((number + 1))
    done
}
marks() { # regions, and those that are marked, of each member's bitmap
    number=0
    for member in $MEMBERS; do
        say marks.$number $(mdadm --examine-bitmap $member | sed -n 's/^ *Bitmap : \([0-9]*\) bits (chunks), \([0-9]*\) dirty.*/\1 \2/p')
        number=$((number + 1))
    done
}
# In auto-read-only: nothing is written, and no recovery or resync begins before `go`.
assemble() {
    must mdadm --assemble --run /dev/md0 "$@"
    look
}
refused() { # the array is not started out of these members, not even with --run
    if out=$(mdadm --assemble --run /dev/md0 "$@" 2>&1); then
        look
        die "assembled: $(echo $out)"
    fi
    say refused $(echo $out)
    [ ! -e $MD ] || must mdadm --stop /dev/md0
}
not_re_added() { # this member is not taken back, but could be a spare
    if out=$(mdadm /dev/md0 --re-add "$1" 2>&1); then die "taken back: $1"; fi
    say not_re_added $out
}
create() { must mdadm --create /dev/md0 --run "$@"; }
go() {
    read -r word _ <$MD/array_state
    case $word in
    read-auto | readonly) must mdadm --readwrite /dev/md0 ;;
    esac
}
content() {
    echo 3 >/proc/sys/vm/drop_caches
    out=$(sha256sum </dev/md0) || die "the array cannot be read"
    say sha256 ${out%% *}
}
put() { # skip, seek, count: so many KiB of the seed, from there to there
    must dd if=$SEED of=/dev/md0 bs=1k skip=$1 seek=$2 count=$3 conv=notrunc,fsync
}
fill() { # the whole array, with the beginning of the seed
    must dd if=$SEED of=/dev/md0 bs=1k count=$(($(blockdev --getsize64 /dev/md0) / 1024)) conv=notrunc,fsync
}
check() {
    [ -e $MD/sync_action ] || return 0 # levels without redundancy
    await "is sync_action idle"
    echo check >$MD/sync_action || die "no check"
    await "is sync_action idle"
    say mismatch_cnt $(cat $MD/mismatch_cnt)
}
whole() { # until every slot is filled and in sync
    await "is degraded 0 && is sync_action idle && is resync_start none"
}
# Lets the next recovery or resync come half-way and no further; `held` waits until it stands there.
hold() {
    read -r total <$MD/component_size # KiB of each member
    total=$((total * 2))
    read -r word <$MD/level
    [ "$1 $word" != "resync raid10" ] || total=$(blockdev --getsz /dev/md0) # counted in sectors of the array
    read -r chunk <$MD/chunk_size
    chunk=$((chunk ? chunk / 512 : 128))
    HOLD=$((total / 2 / chunk * chunk))
    echo $HOLD >$MD/sync_max || die "no sync_max $HOLD"
    say hold $HOLD
}
held() { await "is sync_completed $HOLD"; }
moved() { # sectors read from and written to each member since the boot
    number=0
    for member in $MEMBERS; do
        set -- $(cat /sys/block/${member#/dev/}/stat)
        say read.$number $3
        say written.$number $7
        number=$((number + 1))
    done
}
cut_power() { # with all that is under way
    say cut
    usleep 200000 # the serial line
    echo b >/proc/sysrq-trigger
    sleep 60
    die "the power is still on"
}
stop() {
    sync
    must mdadm --stop /dev/md0
}

cell() {
    echo "@@ cell $1"
    SEED=$2
    shift 2
    MEMBERS="$*"
}
cell_end() {
    [ ! -e $MD/array_state ] || is array_state clear || mdadm --stop /dev/md0 >/dev/null 2>&1 || { sleep 1; mdadm --stop /dev/md0; }
    echo "@@ end"
}
