#!lua name=rk1
-- The functions of layout version 1. All files of this folder are concatenated in the order of their names
-- into one library. KEYS[1] of every function is the common prefix of the keys it touches, hash tag included
-- ("rookery:{p3}:"); every other key is that prefix plus a suffix, so a call stays within one slot.
-- Session ids and group ids are 16 raw bytes. Times are milliseconds of the store's own clock.

local NEVER = 4294967295 -- Session Expiry Interval: no end
local LEASE_MS = 10000 -- a timer item that is worked on comes again after this
local SERVED_S = 3600 -- memory of who got a message id
local PAGE_BYTES = 1048576 -- a page ends after so many bytes
local FORGET_MS = 3600000 -- a dead node is remembered for so long
local CHUNK = 2000 -- elements unpacked into one command

-- Answers of adding calls (GUARANTEES section 4, rule 5).
local OK, GAP, LATE, FENCED, FREE, BUSY = 0, 1, 2, 3, 4, 5

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Runs a command with any number of trailing arguments.
local function in_chunks(command, key, list)
  local count = #list
  if count == 0 then
    return 0
  end
  if count <= CHUNK then
    return redis.call(command, key, unpack(list))
  end
  local sum = 0
  for first = 1, count, CHUNK do
    local done = redis.call(command, key, unpack(list, first, math.min(first + CHUNK - 1, count)))
    if type(done) == 'number' then
      sum = sum + done
    end
  end
  return sum
end

local function is_fenced(p, node, inc)
  local dead = redis.call('HGET', p .. 'fence', 'f:' .. node)
  return dead and tonumber(dead) >= tonumber(inc)
end

-- From now on nothing that this incarnation or an older one of the node asks for is done here.
local function fence(p, node, inc)
  if not is_fenced(p, node, inc) then
    redis.call('HSET', p .. 'fence', 'f:' .. node, inc, 'z:' .. node, now_ms())
    redis.call('HDEL', p .. 'fence', 'l:' .. node, 's:' .. node)
  end
end

-- Forgets those that were fenced more than `after` ms (nil: FORGET_MS) ago: what of theirs still comes is late.
local function forget_fenced(p, after)
  local fields = {}
  for _, field in ipairs(redis.call('HKEYS', p .. 'fence')) do
    if string.sub(field, 1, 2) == 'z:' then
      fields[#fields + 1] = field
    end
  end
  local gone, before = {}, now_ms() - (tonumber(after) or FORGET_MS)
  for _, field in ipairs(fields) do
    if tonumber(redis.call('HGET', p .. 'fence', field)) < before then
      local n = #gone
      gone[n + 1], gone[n + 2] = field, 'f:' .. string.sub(field, 3)
    end
  end
  in_chunks('HDEL', p .. 'fence', gone)
end

-- Whether a member, "<node>:<inc>", is known here to be dead.
local function is_dead(p, member)
  local node, inc = string.match(member, '^(.*):(%d+)$')
  return node and is_fenced(p, node, inc)
end

-- Whether an adding call may run; else the answer to give. args: node, inc, valid_until, number.
-- What came last is one field: incarnation and number as two doubles, then the answer.
local function refusal(p, args)
  local node, inc, number = args[1], tonumber(args[2]), tonumber(args[4])
  local f = redis.call('HMGET', p .. 'fence', 'f:' .. node, 'l:' .. node)
  if f[1] and tonumber(f[1]) >= inc then
    return { FENCED, '' }
  end
  local last = 0
  if f[2] then
    local of, n = struct.unpack('<dd', f[2])
    if of == inc then
      last = n
    end
  end
  if number == last then
    return { OK, string.sub(f[2], 17) }
  end
  if number ~= last + 1 then
    return { GAP, string.format('%.0f', last) }
  end
  local now = now_ms()
  if now > tonumber(args[3]) then
    return { LATE, string.format('%.0f', now) }
  end
  return nil
end

-- What became of an adding call whose answer was lost: what it would answer if it came again, or FREE if it was not
-- executed. Also answers in a full store, where the call itself is refused before it runs. args: as the call's.
local function outcome(keys, args)
  return refusal(keys[1], args) or { FREE, '' }
end

redis.register_function { function_name = 'rk1_outcome', callback = outcome, flags = { 'no-writes' } }

-- Keeps the answer of an adding call, should its number come again.
local function answered(p, args, answer)
  local last = struct.pack('<dd', tonumber(args[2]), tonumber(args[4])) .. answer
  redis.call('HSET', p .. 'fence', 'l:' .. args[1], last)
  return { OK, answer }
end

-- The counters of a session are one field of its hash, 'c', since each takes part in every message:
-- birth, last seq, queued messages, their bytes, seqs in release, highest seq sent, store generation, route version
-- of the last unsubscribe; as doubles. 64 bytes: with more the hash would no longer be compact.
local COUNTERS = '<dddddddd'

-- What a session's seqs skip when the store came back with an older state: packet ids in flight are not used again.
local JUMP = 28672
