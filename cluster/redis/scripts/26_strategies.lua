-- Who gets the next entry of a shared subscription.

local PRIME = 67108859

-- Connected sessions of a group whose members are there: list of {sid, number, member}.
local function connected_sessions(p, group)
  local found, all = {}, redis.call('HGETALL', p .. 'gm:' .. group.gid)
  for i = 1, #all, 2 do
    local _, _, name = group_session(all[i + 1])
    local m = name ~= '' and member_of(group, name)
    if m and m[SESSIONS] > 0 then
      found[#found + 1] = { all[i], struct.unpack('>I4', all[i]) % PRIME, m }
    end
  end
  return found
end

-- Rendezvous: each key has its own order of the sessions, so that only keys move whose session left.
local function highest(sessions, key)
  local k, best, top = tonumber(string.sub(redis.sha1hex(key), 1, 7), 16) % PRIME, nil, -1
  for _, each in ipairs(sessions) do
    local weight = (k * each[2]) % PRIME
    weight = (weight * weight + each[2]) % PRIME
    if weight > top or (weight == top and each[1] < best[1]) then
      best, top = each, weight
    end
  end
  return best
end

local NUMBER_SIZES = { 4, 8, 1, 2, 4, 8, 1, 2, 4, 8 }

-- Where the next value begins after the msgpack scalar at `at`; for a string also its first and last byte. nil if it is
-- none that a message has. Lua's own unpack does not know byte strings.
local function behind(body, at)
  local byte = string.byte(body, at)
  if byte <= 0x7f or byte >= 0xe0 or (byte >= 0xc0 and byte <= 0xc3) then
    return at + 1
  elseif byte >= 0xa0 and byte <= 0xbf then
    return at + byte - 0x9f, at + 1, at + byte - 0xa0
  elseif (byte >= 0xc4 and byte <= 0xc6) or (byte >= 0xd9 and byte <= 0xdb) then
    local size = 2 ^ (byte - (byte <= 0xc6 and 0xc4 or 0xd9))
    local length = struct.unpack('>I' .. size, body, at + 1)
    return at + 1 + size + length, at + 1 + size, at + size + length
  elseif byte >= 0xca and byte <= 0xd3 then
    return at + 1 + NUMBER_SIZES[byte - 0xc9]
  end
end

-- What a hash strategy looks at: the topic (field 1) or the publisher (field 9) of a message.
local function hash_key(strategy, body)
  local at = string.byte(body, 1) <= 0x9f and 2 or 4
  if strategy == 'hash_clientid' then
    for _ = 1, 8 do
      at = at and behind(body, at)
    end
  end
  local _, first, last
  if at then
    _, first, last = behind(body, at)
  end
  return first and string.sub(body, first, last) or ''
end

-- The session that a sticky group has chosen, nil if it is not connected any more.
local function sticky_session(p, group)
  local record = group.sticky ~= '' and redis.call('HGET', p .. 'gm:' .. group.gid, group.sticky)
  if record then
    local _, _, name = group_session(record)
    local m = name ~= '' and member_of(group, name)
    return m and m[SESSIONS] > 0 and { group.sticky, 0, m } or nil
  end
end

-- Those that look at room. Of the members that have some: the one with the highest value.
local values = {
  -- Each member has a turn per session; who had none for long does not catch up.
  round_robin = function(group, m)
    return -math.max(group.turn, m[TURN])
  end,
  random = function(_, m)
    return math.random() ^ (1 / m[SESSIONS])
  end,
  ['local'] = function(_, m, caller)
    return m[NAME] == caller and math.huge or m[WINDOW] - m[COUNT]
  end,
  least_inflight = function(_, m)
    return m[WINDOW] - m[COUNT]
  end,
}

local function choose_by_room(group, caller)
  local strategy = group.strategy
  local value_of = values[strategy]
  if strategy == 'random' then
    -- Else it would be the same in each call.
    math.randomseed(tonumber(redis.call('TIME')[2]))
  end
  return function(_, not_to)
    local best, score, avoided
    for _, m in ipairs(group.members) do
      if m[SESSIONS] > 0 and m[WINDOW] > m[COUNT] then
        if m[NAME] == not_to then
          avoided = m
        else
          local value = value_of(group, m, caller)
          if not best or value > score then
            best, score = m, value
          end
        end
      end
    end
    best = best or avoided
    if best and strategy == 'round_robin' then
      group.turn = math.max(group.turn, best[TURN])
      best[TURN] = group.turn + 1 / best[SESSIONS]
    end
    return best, ''
  end
end

local function choose_session(p, group)
  local strategy, sessions, chosen = group.strategy, nil, {}
  local function among(key)
    sessions = sessions or connected_sessions(p, group)
    return highest(sessions, key)
  end
  return function(body)
    local key = strategy == 'sticky' and '' or hash_key(strategy, body)
    local each = chosen[key]
    if not each then
      if strategy == 'sticky' then
        each = sticky_session(p, group) or among(group.gid)
        group.sticky = each and each[1] or ''
      else
        each = among(key)
      end
      chosen[key] = each
    end
    if each and each[3][COUNT] < NODE_ROOM then
      return each[3], each[1]
    end
  end
end

-- Who chooses: a function of the body and of the member that shall rather not get it; it returns a member and the sid
-- of its session, '' if any will do; nil if there is no room.
local function chooser(p, group, caller)
  if values[group.strategy] then
    return choose_by_room(group, caller)
  end
  return choose_session(p, group)
end
