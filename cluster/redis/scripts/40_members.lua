-- Membership, "<node>:<inc>": leases in the zset 'nodes'; the dead that are still to be reaped in the zset 'dead', with
-- the time until which somebody is at it; in hash 'seen' the member list that each has acted on, in hash 'level' its
-- feature level, in hash 'build' its version and the library that it calls. A member list has a number, 'mver' of 'meta',
-- which grows with each change.

local SKIP = 1000 -- incarnations that are not given out where the store lost its data
local CLAIM_MS = 10000 -- who was told to reap a dead member is alone with it for so long
local CLAIMS = 10 -- dead members that are handed out at once

local function bury(p, member)
  if redis.call('ZREM', p .. 'nodes', member) == 0 then
    return false
  end
  redis.call('ZADD', p .. 'dead', 0, member)
  redis.call('HDEL', p .. 'seen', member)
  redis.call('HDEL', p .. 'level', member)
  redis.call('HDEL', p .. 'build', member)
  redis.call('HINCRBY', p .. 'meta', 'mver', 1)
  return true
end

-- A new incarnation of a node; older ones are dead from now on.
-- args: node, layout version, partitions, lease ms, feature level; optional: what it is, for operators.
-- Returns {'layout', found} or {'partitions', found} if the store was made for others; else
-- {'joined', inc, now, number of the member list}.
local function join(keys, args)
  local p, now = keys[1], now_ms()
  local meta = redis.call('HMGET', p .. 'meta', 'layout', 'partitions')
  if meta[1] and meta[1] ~= args[2] then
    return { 'layout', meta[1] }
  end
  if meta[2] and meta[2] ~= args[3] then
    return { 'partitions', meta[2] }
  end
  redis.call('HSET', p .. 'meta', 'layout', args[2], 'partitions', args[3])
  for _, member in ipairs(redis.call('ZRANGE', p .. 'nodes', 0, -1)) do
    if string.match(member, '^(.*):%d+$') == args[1] then
      bury(p, member)
    end
  end
  local inc = redis.call('HINCRBY', p .. 'meta', 'inc', 1 + tonumber(redis.call('HGET', p .. 'meta', 'skip') or 0))
  redis.call('HDEL', p .. 'meta', 'skip')
  local member = args[1] .. ':' .. inc
  redis.call('ZADD', p .. 'nodes', now + tonumber(args[4]), member)
  redis.call('HSET', p .. 'level', member, args[5])
  -- The library of the version before buries without a look at these.
  for _, other in ipairs(redis.call('HKEYS', p .. 'build')) do
    if not redis.call('ZSCORE', p .. 'nodes', other) then
      redis.call('HDEL', p .. 'build', other)
    end
  end
  if args[6] then
    redis.call('HSET', p .. 'build', member, args[6])
  end
  return { 'joined', inc, now, redis.call('HINCRBY', p .. 'meta', 'mver', 1) }
end

-- What became of a member that has no lease: 1 superseded, 2 the store does not know it, 3 buried.
local function lost_lease(p, node, inc)
  for _, member in ipairs(redis.call('ZRANGE', p .. 'nodes', 0, -1)) do
    local name, other = string.match(member, '^(.*):(%d+)$')
    if name == node and tonumber(other) > inc then
      return 1
    end
  end
  return tonumber(redis.call('HGET', p .. 'meta', 'inc') or 0) >= inc and 3 or 2
end

-- Renews a lease. args: node, inc, lease ms, layout version, partitions, number of the member list that it acted on,
-- store time until which it may bury those whose lease is over (0: not at all; a beat that lay in the socket of a store
-- that stood still may not), feature level; optional: what it is, for operators.
-- Returns {now, status, number of the member list, lowest feature level of the members, {members}, {dead members that
-- the caller shall reap}}. Members are all that were not buried: also one whose lease is over may still come back.
-- Status 0: renewed; 1: a newer incarnation of the node has joined; 2: renewed, since the store knows of no incarnation
-- so high: it lost its data; 3: taken for dead, or what came back has another layout. With 1 and 3 nothing else counts.
local function beat(keys, args)
  local p, now, inc = keys[1], now_ms(), tonumber(args[2])
  local nodes, member, status = p .. 'nodes', args[1] .. ':' .. args[2], 0
  if not redis.call('ZSCORE', nodes, member) then
    status = lost_lease(p, args[1], inc)
    local layout = status == 2 and redis.call('HGET', p .. 'meta', 'layout')
    if layout and layout ~= args[4] then
      status = 3
    end
    if status ~= 2 then
      return { now, status, 0, 0, {}, {} }
    end
    local number = tonumber(redis.call('HGET', p .. 'meta', 'mver') or 0)
    -- Others may have had higher incarnations than this one: the next to join skips those.
    redis.call('HSET', p .. 'meta', 'layout', args[4], 'partitions', args[5], 'inc', args[2], 'skip', SKIP,
      'mver', string.format('%.0f', math.max(number, tonumber(args[6])) + 1))
  end
  redis.call('ZADD', nodes, now + tonumber(args[3]), member)
  redis.call('HSET', p .. 'seen', member, args[6])
  redis.call('HSET', p .. 'level', member, args[8])
  if args[9] then
    redis.call('HSET', p .. 'build', member, args[9])
  end
  if now < tonumber(args[7]) then
    for _, late in ipairs(redis.call('ZRANGEBYSCORE', nodes, '-inf', '(' .. now)) do
      bury(p, late)
    end
  end
  local members = redis.call('ZRANGE', nodes, 0, -1)
  local lowest_level
  for _, level in ipairs(redis.call('HMGET', p .. 'level', unpack(members))) do
    level = tonumber(level or 0)
    if not lowest_level or level < lowest_level then
      lowest_level = level
    end
  end
  local dead = redis.call('ZRANGEBYSCORE', p .. 'dead', '-inf', now, 'LIMIT', 0, CLAIMS)
  for _, each in ipairs(dead) do
    redis.call('ZADD', p .. 'dead', now + CLAIM_MS, each)
  end
  return { now, status, tonumber(redis.call('HGET', p .. 'meta', 'mver') or 0), lowest_level, members, dead }
end

-- How many live members other than this have not acted on a member list yet. args: its number, member.
local function unseen(keys, args)
  local p, count = keys[1], 0
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', p .. 'nodes', now_ms(), '+inf')) do
    if member ~= args[2] and tonumber(redis.call('HGET', p .. 'seen', member) or -1) < tonumber(args[1]) then
      count = count + 1
    end
  end
  return count
end

-- Gives up a lease; what the member may still own is reaped by others. args: member. Returns 1 if it had one.
local function leave(keys, args)
  return bury(keys[1], args[1]) and 1 or 0
end

-- These dead members own nothing any more. args: members.
local function buried(keys, args)
  return redis.call('ZREM', keys[1] .. 'dead', unpack(args))
end

redis.register_function { function_name = 'rk1_join', callback = join, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_beat', callback = beat, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_unseen', callback = unseen, flags = { 'no-writes' } }
redis.register_function { function_name = 'rk1_leave', callback = leave, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_buried', callback = buried, flags = { 'allow-oom' } }
