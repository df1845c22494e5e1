-- Membership: leases in a zset, the dead that are still to be reaped in a set. Members are "<node>:<inc>".

-- args: node, layout version, partitions, lease ms.
-- Returns {'layout', found} or {'partitions', found} if the store was made for others; {'live', member, ms left} while
-- another node lives; else {'joined', inc, now, dead members ...}.
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
  local members = redis.call('ZRANGE', p .. 'nodes', 0, -1, 'WITHSCORES')
  for i = 1, #members, 2 do
    local left = tonumber(members[i + 1]) - now
    if string.match(members[i], '^(.*):%d+$') ~= args[1] and left > 0 then
      return { 'live', members[i], left }
    end
  end
  for i = 1, #members, 2 do
    redis.call('SADD', p .. 'dead', members[i])
  end
  redis.call('DEL', p .. 'nodes')
  local inc = redis.call('HINCRBY', p .. 'meta', 'inc', 1)
  redis.call('ZADD', p .. 'nodes', now + tonumber(args[4]), args[1] .. ':' .. inc)
  local answer = { 'joined', inc, now }
  for _, member in ipairs(redis.call('SMEMBERS', p .. 'dead')) do
    answer[#answer + 1] = member
  end
  return answer
end

-- Renews a lease. args: node, inc, lease ms, layout version, partitions.
-- Returns {now, 0, live members ...}; {now, 1} if this one was superseded; {now, 2, live members ...} if the store knows
-- of no incarnation so high: it lost its data, and the member is let in again.
local function beat(keys, args)
  local p, now = keys[1], now_ms()
  local nodes, member, status = p .. 'nodes', args[1] .. ':' .. args[2], 0
  if not redis.call('ZSCORE', nodes, member) then
    if tonumber(redis.call('HGET', p .. 'meta', 'inc') or 0) >= tonumber(args[2]) then
      return { now, 1 }
    end
    status = 2
    redis.call('HSET', p .. 'meta', 'layout', args[4], 'partitions', args[5], 'inc', args[2])
  end
  redis.call('ZADD', nodes, now + tonumber(args[3]), member)
  return { now, status, unpack(redis.call('ZRANGEBYSCORE', nodes, now, '+inf')) }
end

-- Gives up a lease; what the member may still own is reaped by the next one that joins. args: member.
local function leave(keys, args)
  if redis.call('ZREM', keys[1] .. 'nodes', args[1]) == 1 then
    redis.call('SADD', keys[1] .. 'dead', args[1])
  end
  return 1
end

-- These dead members own nothing any more. args: members.
local function buried(keys, args)
  return redis.call('SREM', keys[1] .. 'dead', unpack(args))
end

redis.register_function { function_name = 'rk1_join', callback = join, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_beat', callback = beat, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_leave', callback = leave, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_buried', callback = buried, flags = { 'allow-oom' } }
