-- Retained messages (one hash per topic shard) and the route table, each with a log of its changes.

local LOG = 100000 -- entries of a log

-- Logs names of retained messages that came (1) or went (0), in order. changes: that number, topic, ... Field 't', the
-- time, tells this change from another of the same number in another history of the store.
local function log_names(p, changes)
  if #changes > 0 then
    local version = redis.call('INCR', p .. 'rver')
    local now = redis.call('TIME')
    redis.call('XADD', p .. 'rlog', 'MAXLEN', '~', LOG, string.format('0-%.0f', version), 'c', cmsgpack.pack(changes),
      't', now[1] .. '.' .. now[2])
  end
end

-- args: node, inc, valid_until, number, then topic, record ... Value ''. Names that are new go to the log: 'rver' is
-- its version, 'rlog' has an entry 0-<version> with field 'c', msgpack of flat {1, topic, ...}.
local function retain(keys, args)
  local p = keys[1]
  local refused = refusal(p, args)
  if refused then
    return refused
  end
  local changes, n = {}, 0
  for i = 5, #args, 2 do
    if redis.call('HSET', p .. 'ret', args[i], args[i + 1]) == 1 then
      changes[n + 1], changes[n + 2] = 1, args[i]
      n = n + 2
    end
  end
  log_names(p, changes)
  return answered(p, args, '')
end

-- args: node, inc, valid_until, number, then topics. Value ''. Names that were there go to the log with 0.
local function unretain(keys, args)
  local p = keys[1]
  local refused = refusal(p, args)
  if refused then
    return refused
  end
  local changes, n = {}, 0
  for i = 5, #args do
    if redis.call('HDEL', p .. 'ret', args[i]) == 1 then
      changes[n + 1], changes[n + 2] = 0, args[i]
      n = n + 2
    end
  end
  log_names(p, changes)
  return answered(p, args, '')
end

-- Removes a retained message that has expired, unless it was replaced. args: topic, its record. Returns 1 if it is
-- gone.
local function expire_retained(keys, args)
  local p = keys[1]
  local value = redis.call('HGET', p .. 'ret', args[1])
  if value and value ~= args[2] then
    return 0
  end
  if redis.call('HDEL', p .. 'ret', args[1]) == 1 then
    log_names(p, { 0, args[1] })
  end
  return 1
end

-- Makes the next version of the route table and logs what it changed; 'ver' is '<number>:<tag>', the log has the entry
-- 0-<number> with fields t (tag), o (the member that did it, '' if none), c (msgpack of flat {1 set | 0 removed, field,
-- record | birth, ...}). Returns the version.
local function next_version(p, tag, origin, changes)
  local number = 1 + tonumber(string.match(redis.call('GET', p .. 'ver') or '0', '^%d+'))
  local version = string.format('%.0f:%s', number, tag)
  redis.call('XADD', p .. 'log', 'MAXLEN', '~', LOG, string.format('0-%.0f', number), 't', tag, 'o', origin,
    'c', cmsgpack.pack(changes))
  redis.call('SET', p .. 'ver', version)
  return version
end

-- The member of a field 'n<member>\0<filter>' of the route table.
local function node_of(field)
  return string.sub(field, 2, string.find(field, '\0', 2, true) - 1)
end

-- args: node, inc, valid_until, number, tag, then field, record ... Fields are 's' .. sid .. filter (the record has the
-- session's birth in bytes 2 to 9; the route of a later birth stays) or 'n' .. member .. '\0' .. filter.
-- Value: the new version, '<number>:<tag>'.
local function set_routes(keys, args)
  local p = keys[1]
  local refused = refusal(p, args)
  if refused then
    return refused
  end
  local fields, changes, n, c = {}, {}, 0, 0
  for i = 6, #args, 2 do
    local field, record, stays = args[i], args[i + 1], false
    if string.byte(field) == 115 then
      local value = redis.call('HGET', p .. 'f', field)
      stays = value and string.sub(value, 2, 9) > string.sub(record, 2, 9)
    else
      redis.call('SADD', p .. 'nr:' .. node_of(field), field)
    end
    if not stays then
      fields[n + 1], fields[n + 2] = field, record
      n = n + 2
      changes[c + 1], changes[c + 2], changes[c + 3] = 1, field, record
      c = c + 3
    end
  end
  in_chunks('HSET', p .. 'f', fields)
  return answered(p, args, next_version(p, args[5], args[1] .. ':' .. args[2], changes))
end

-- args: node, inc, valid_until, number, tag, then field, 8 bytes of birth or '' ... A session's route of a later birth
-- stays, and the log has only what went. Value: the new version, '<number>:<tag>'.
local function remove_routes(keys, args)
  local p = keys[1]
  local refused = refusal(p, args)
  if refused then
    return refused
  end
  local changes, c = {}, 0
  for i = 6, #args, 2 do
    local field = args[i]
    local value = redis.call('HGET', p .. 'f', field)
    local is_node = string.byte(field) == 110
    if value and (is_node or string.sub(value, 2, 9) <= args[i + 1]) then
      redis.call('HDEL', p .. 'f', field)
      if is_node then
        redis.call('SREM', p .. 'nr:' .. node_of(field), field)
      end
      changes[c + 1], changes[c + 2], changes[c + 3] = 0, field, args[i + 1]
      c = c + 3
    end
  end
  return answered(p, args, next_version(p, args[5], args[1] .. ':' .. args[2], changes))
end

-- Fences a dead incarnation and removes its node routes. args: node, inc, limit. Returns how many it still has.
local function reap_routes(keys, args)
  local p, member = keys[1], args[1] .. ':' .. args[2]
  fence(p, args[1], args[2])
  forget_fenced(p)
  local own = p .. 'nr:' .. member
  local fields, changes = redis.call('SRANDMEMBER', own, args[3]), {}
  if #fields > 0 then
    for i = 1, #fields do
      changes[3 * i - 2], changes[3 * i - 1], changes[3 * i] = 0, fields[i], ''
    end
    in_chunks('HDEL', p .. 'f', fields)
    in_chunks('SREM', own, fields)
    local tag = string.sub(redis.sha1hex(member .. table.concat(redis.call('TIME'), '.')), 1, 8)
    next_version(p, tag, '', changes)
  end
  return redis.call('SCARD', own)
end

redis.register_function('rk1_retain', retain)
redis.register_function { function_name = 'rk1_unretain', callback = unretain, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_expire_retained', callback = expire_retained, flags = { 'allow-oom' } }
redis.register_function('rk1_set_routes', set_routes)
redis.register_function { function_name = 'rk1_remove_routes', callback = remove_routes, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_reap_routes', callback = reap_routes, flags = { 'allow-oom' } }
